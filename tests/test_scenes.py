"""Digit scenes: what is drawn is annotated exactly, the same everywhere, and never a test digit in training."""

import pickle
from collections import Counter
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as rle
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy import ndimage
from torchvision.ops import masks_to_boxes

from davit.data import digit_shapes, scenes
from davit.data.digits import Digits
from davit.data.scenes import Scenes

LUMINANCE = np.array((0.299, 0.587, 0.114))


@pytest.fixture(scope="module")
def detection() -> Scenes:
    return Scenes("train", 60, "detection")


def test_boxes_are_those_of_the_masks_and_masks_do_not_meet(detection: Scenes) -> None:
    for index in range(len(detection)):
        picture, found = detection[index]
        assert (picture.mode, picture.size) == ("RGB", (128, 128))
        assert found.boxes.dtype == torch.float32
        assert found.labels.dtype == torch.int64
        assert found.masks.dtype == torch.bool
        assert 1 <= len(found.labels) <= 8
        last = torch.tensor([0.0, 0.0, 1.0, 1.0])  # torchvision's boxes end on the last pixel, ours after it
        assert torch.equal(found.boxes, masks_to_boxes(found.masks) + last)
        assert found.masks.sum(0).max() == 1


def test_what_is_drawn_is_what_the_masks_say(detection: Scenes) -> None:
    """Outside the masks, a pixel's width away, there is background; inside there is the digit's colour."""
    stronger = []
    for index in range(len(detection)):
        picture, found = detection[index]
        pixels = torch.from_numpy(np.array(picture) @ LUMINANCE)
        grown = torch.nn.functional.max_pool2d(found.masks.any(0).float()[None], 9, 1, 4)[0] > 0
        near = torch.nn.functional.max_pool2d(found.masks.any(0).float()[None], 5, 1, 2)[0] > 0
        for mask in found.masks:
            around = torch.nn.functional.max_pool2d(mask.float()[None], 17, 1, 8)[0].bool() & ~grown
            if around.sum() > 20:
                stronger.append(float((pixels[mask].mean() - pixels[around].mean()).abs()))
        assert pixels[~near].std() < 40
    assert min(stronger) > 25
    assert np.mean(stronger) > 60


def test_both_tasks_see_the_same_scene(detection: Scenes) -> None:
    segmentation = Scenes("train", 60, "segmentation")
    assert detection.classes == tuple("0123456789")
    assert segmentation.classes == ("background", *"0123456789")
    for index in (0, 7, 59):
        picture, found = detection[index]
        same, classes = segmentation[index]
        assert np.array_equal(np.asarray(picture), np.asarray(same))
        expected = torch.zeros(128, 128, dtype=torch.uint8)
        for label, mask in zip(found.labels, found.masks, strict=True):
            expected[mask] = int(label) + 1
        assert classes.dtype == np.uint8
        assert np.array_equal(classes, expected.numpy())
        placed = detection.placed(index)
        assert [digit.digit for digit in placed] == found.labels.tolist()
        assert [list(digit.box) for digit in placed] == found.boxes.tolist()


def test_a_scene_follows_from_seed_split_and_index_alone(detection: Scenes) -> None:
    first = np.asarray(detection[5][0])
    np.random.seed(3)  # noqa: NPY002 - the loader seeds the global generators
    other = pickle.loads(pickle.dumps(Scenes("train", 6, "detection")))
    assert np.array_equal(np.asarray(other[5][0]), first)
    for changed in (Scenes("train", 6, "detection", seed=1), Scenes("test", 6, "detection")):
        assert not np.array_equal(np.asarray(changed[5][0]), first)
    assert not np.array_equal(np.asarray(detection[4][0]), first)
    assert len({np.asarray(detection[index][0]).tobytes() for index in range(60)}) == 60


@pytest.mark.parametrize("split", ["train", "test"])
def test_scenes_show_digits_of_their_own_split_only(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def ink(picture) -> bytes:
        return np.asarray(picture).tobytes()

    own = {ink(picture) for picture, _ in Digits(split)}
    drawn = []
    enlarge = scenes.enlarged

    def watch(source, *others):
        drawn.append(ink(source.crop((1, 1, 9, 9))))
        return enlarge(source, *others)

    monkeypatch.setattr(scenes, "enlarged", watch)
    data = Scenes(split, 200, "segmentation")
    for index in range(200):
        data[index]
    assert set(drawn) <= own
    assert len(set(drawn)) > 250
    other = {ink(picture) for picture, _ in Digits("test" if split == "train" else "train")}
    assert not other & own


def test_little_is_hidden_and_sizes_and_classes_vary() -> None:
    data = Scenes("train", 300, "detection")
    counts, classes, sides = Counter(), Counter(), []
    for index in range(len(data)):
        layout, _ = data._layout(index)
        found = data.placed(index)
        counts[len(found)] += 1
        classes.update(digit.digit for digit in found)
        sides += [max(d.box[2] - d.box[0], d.box[3] - d.box[1]) for d in found]
        for number, (_, _, _, cover) in enumerate(layout.inks, 1):
            assert (layout.owner == number).sum() >= 0.8 * (cover >= 128).sum()
    assert set(counts) == set(range(1, 9))
    assert set(classes) == set(range(10))
    assert min(classes.values()) > 0.06 * sum(classes.values())
    assert min(sides) >= 10
    assert np.percentile(sides, 5) < 18
    assert np.percentile(sides, 95) > 45


def test_fuller_scenes_have_at_least_so_many_digits_where_they_find_a_place() -> None:
    usual, full = Scenes("train", 60, "segmentation"), Scenes("train", 60, "segmentation", fewest=6)
    counts = [len(full.placed(index)) for index in range(60)]
    assert max(counts) == 8
    assert sum(count >= 6 for count in counts) > 50
    assert full.histogram()[1:].sum() > 1.3 * usual.histogram()[1:].sum()
    crowded = Scenes("train", 60, "segmentation", fewest=12, most=14)
    counts = [len(crowded.placed(index)) for index in range(60)]
    assert max(counts) == 14
    assert sum(count >= 12 for count in counts) > 45
    assert crowded.histogram()[1:].sum() > 1.3 * full.histogram()[1:].sum()
    for fewest, most in ((0, 8), (9, 8), (9, 25)):
        with pytest.raises(ValueError, match="1 to 24"):
            Scenes("train", 60, "segmentation", fewest=fewest, most=most)


def test_bright_digits_are_never_darker_than_what_is_around_them() -> None:
    def differences(data: Scenes) -> list[float]:
        """Of each digit's mean luminance and the background's."""
        told = []
        for index in range(len(data)):
            picture, found = data[index]
            luminance = np.asarray(picture) @ LUMINANCE
            ground = luminance[~found.masks.any(0).numpy()].mean()
            told += [luminance[mask.numpy()].mean() - ground for mask in found.masks]
        return told

    usual, mixed = differences(Scenes("train", 60, "detection")), Scenes("train", 60, "detection", bright=40)
    assert 0.35 < np.mean(np.array(usual) > 0) < 0.65
    bright = differences(Scenes("train", 40, "detection", bright=40))
    assert min(bright) > 30
    assert np.percentile(bright, 90) > 110
    # The same digits at the same places, and the same scenes once the bright ones are over.
    for index in (0, 39, 40, 59):
        (picture, found), (plain, wanted) = mixed[index], Scenes("train", 60, "detection")[index]
        assert torch.equal(found.boxes, wanted.boxes)
        assert (index >= 40) == np.array_equal(np.asarray(picture), np.asarray(plain))


def test_ground_truth_is_coco() -> None:
    data = Scenes("test", 12, "detection", seed=4, size=96)
    truth = data.ground_truth()
    with redirect_stdout(StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
    assert [image["id"] for image in truth["images"]] == list(range(1, 13))
    assert [found["id"] for found in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
    assert data.category_ids == tuple(range(1, 11))
    assert {category["id"]: category["name"] for category in truth["categories"]} == dict(
        zip(data.category_ids, data.classes, strict=True)
    )
    for index in range(len(data)):
        assert data.size(index) == (96, 96)
        _, found = data[index]
        annotations = coco.imgToAnns[index + 1]
        assert [data.category_ids[label] for label in found.labels] == [a["category_id"] for a in annotations]
        for box, mask, annotation in zip(found.boxes, found.masks, annotations, strict=True):
            left, top, width, height = annotation["bbox"]
            assert box.tolist() == [left, top, left + width, top + height]
            assert annotation["area"] == mask.sum() == coco_mask.area(annotation["segmentation"])
            assert np.array_equal(rle.decode(annotation["segmentation"]).astype(bool), mask.numpy())


@pytest.mark.parametrize("size", [48, 77, 200])
def test_other_sizes(size: int) -> None:
    data = Scenes("train", 20, "detection", size=size)
    for index in range(20):
        picture, found = data[index]
        assert picture.size == (size, size)
        assert found.boxes.min() >= 0
        assert found.boxes.max() <= size
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert len({data.name(index) for index in range(20)}) == 20


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match="'detect'"):
        Scenes("train", 5, "detect")
    with pytest.raises(ValueError, match="'val'"):
        Scenes("val", 5, "detection")
    for arguments in ({"size": 20}, {"seed": -1}, {"bright": -1}):
        with pytest.raises(ValueError, match="at least"):
            Scenes("train", 5, "detection", **arguments)
    for index in (5, -1):
        with pytest.raises(IndexError):
            Scenes("train", 5, "detection")[index]


def test_a_digit_that_is_bent_by_nothing_is_the_digit_as_it_is() -> None:
    """Four quarters that meet, drawn apart, against one affine map."""
    for index in range(20):
        source = digit_shapes.padded(Digits("train")[index][0])
        moves = _NoMoves(index)
        bent, plain = (digit_shapes.enlarged(source, 56.0, bend, moves.again()) for bend in (0.5, 0.0))
        assert bent.shape == plain.shape
        assert np.abs(bent.astype(int) - plain.astype(int)).max() <= 8


class _NoMoves(np.random.Generator):
    """Draws sizes and turns as any generator, and no moves."""

    def __init__(self, seed: int) -> None:
        super().__init__(np.random.PCG64(seed))
        self.seed = seed

    def again(self) -> "_NoMoves":
        return _NoMoves(self.seed)

    def uniform(self, low: float = 0.0, high: float = 1.0, size: object = None) -> object:
        return np.zeros(size) if size else super().uniform(low, high)


def test_strokes_get_thicker_and_thinner_and_stay_in_one_piece() -> None:
    source = digit_shapes.padded(Digits("train")[3][0])
    shapes = [
        digit_shapes.enlarged(source, 56.0, 0.0, _Fixed(share), digit_shapes.MOST_STROKE) for share in (1.0, 0.5, 0.0)
    ]
    thin, usual, thick = (int((shape >= 128).sum()) for shape in shapes)
    assert thin < 0.9 * usual < usual < 0.9 * thick
    assert all(ndimage.label(shape >= 128, np.ones((3, 3)))[1] == 1 for shape in shapes)
    plain = digit_shapes.enlarged(source, 56.0, 0.0, _Fixed(0.5))
    assert np.array_equal(shapes[1], plain)
    with pytest.raises(ValueError, match=r"stroke must lie in 0 to 60\.0 levels of ink, got 90"):
        Scenes("train", 4, "detection", stroke=90)


class _Fixed(np.random.Generator):
    """Draws the same share of every range."""

    def __init__(self, share: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.share = share
        self.drawn = 0

    def uniform(self, low: float = 0.0, high: float = 1.0, size: object = None) -> object:
        self.drawn += 1
        share = self.share if self.drawn == 4 else 0.5  # size, stretch and turn come first
        return low + share * (high - low)


def test_bent_digits_hold_together_and_are_annotated_as_drawn() -> None:
    bent, usual = (Scenes("train", 40, "detection", fewest=12, most=16, bend=bend) for bend in (1.0, 0.0))
    source = digit_shapes.padded(Digits("train")[3][0])
    shapes = [digit_shapes.enlarged(source, 56.0, 1.0, np.random.default_rng(seed)) for seed in range(40)]
    pieces = [ndimage.label(shape >= 128, np.ones((3, 3)))[1] for shape in shapes]
    assert pieces == [ndimage.label(digit_shapes.enlarged(source, 56.0, 0.0, np.random.default_rng(0)) >= 128)[1]] * 40
    assert len({shape.tobytes() for shape in shapes}) == 40
    assert any(bent[index][0] != usual[index][0] for index in range(5))
    for index in range(40):
        picture, found = bent[index]
        pixels = torch.from_numpy(np.array(picture) @ LUMINANCE)
        ground = pixels[~torch.nn.functional.max_pool2d(found.masks.any(0).float()[None], 5, 1, 2)[0].bool()]
        assert abs(pixels[found.masks.any(0)] - ground.mean()).mean() > 1.5 * ground.std()
    with pytest.raises(ValueError, match=r"bend must lie in 0 to 2\.0 pixels, got 3"):
        Scenes("train", 4, "detection", bend=3)
