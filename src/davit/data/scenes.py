"""Digit scenes: several of the built-in digits in one picture, with exact boxes and masks, and no download."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from davit.data.digit_shapes import MOST_BENT, MOST_STROKE, SMALLEST, enlarged, padded
from davit.data.digits import CLASSES, Digits
from davit.structures import Instances, encode_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_DIGITS = 8  # of a test scene
MOST_LAID = 24  # of a training scene; fewer find a place
LEAST_SIDE = 32
LARGEST = 0.44  # of the side
ROOM = 0.8  # of the side: a larger digit, stretched and turned, might not fit
CONTRASTS = (70.0, 150.0)  # between a digit and the background, of 255
OVERLAP = 0.2  # share of a digit that others may cover, and that may lie on others
_TRIES = 8  # places tried for a digit before it is left out
_LUMINANCE = np.array((0.299, 0.587, 0.114))


@dataclass(frozen=True, kw_only=True)
class PlacedDigit:
    """A digit of a scene.

    Attributes:
        digit: 0 to 9.
        box: left, top, right, bottom of its visible part, in pixels; right and bottom lie one after the last pixel.
    """

    digit: int
    box: tuple[int, int, int, int]


class _Layout:
    """Digits on a canvas, each over those before it.

    Attributes:
        inks: digit, top, left and how much ink covers each pixel from there on, (h, w), 0 to 255.
        owner: (side, side): 0 where no digit is, k + 1 where digit k is seen.
    """

    def __init__(self, side: int) -> None:
        self.inks: list[tuple[int, int, int, NDArray[np.uint8]]] = []
        self.owner = np.zeros((side, side), np.uint8)
        self._whole = np.zeros(MOST_LAID + 1)  # pixels of each digit; place 0 is the background
        self._seen = np.zeros(MOST_LAID + 1)  # those that no later digit covers

    def lay(self, digit: int, cover: "NDArray[np.uint8]", rng: np.random.Generator) -> None:
        """Lay a digit where it hides little of each other and rests mostly on free ground, if a try finds a place."""
        height, width = cover.shape
        body = cover >= 128
        for _ in range(_TRIES):
            top = int(rng.integers(len(self.owner) - height + 1))
            left = int(rng.integers(len(self.owner) - width + 1))
            window = self.owner[top : top + height, left : left + width]
            below = np.bincount(window[body], minlength=len(self._seen))
            hidden = (self._seen - below < (1 - OVERLAP) * self._whole)[1:]
            if below[1:].sum() <= OVERLAP * body.sum() and not hidden.any():
                self.inks.append((digit, top, left, cover))
                number = len(self.inks)
                window[body] = number
                self._seen -= below
                self._whole[number] = self._seen[number] = body.sum()
                return

    def labels(self) -> list[int]:
        """The digits, as they were laid."""
        return [digit for digit, *_ in self.inks]


class Scenes:
    """Scenes of digits, 1 to 8 where nothing else is said, each a pure function of (seed, split, index).

    The digits are real ones, enlarged smoothly, turned and stretched a little, in colours brighter or darker than the
    background. A later digit may cover up to a fifth of an earlier one; a digit that finds no such place is not drawn,
    so all that is drawn is annotated. Test scenes hold test digits only. Both tasks see the same pictures.

    Attributes:
        classes: "0" to "9"; for segmentation "background" comes first.
        category_ids: id of each digit in `ground_truth`, 1 to 10.
        split: "train" or "test".
        task: "detection" or "segmentation".
        seed: another seed gives other scenes.
        side: height and width in pixels.
        fewest, most: digits that are laid at least and at most, as far as they find a place.
        sparse: share of the scenes that have fewer than `fewest`.
        largest: size of the largest digits in pixels; 0 for `LARGEST` of the side.
        bright: of the first so many scenes all digits are brighter than the background.
        bend: how far the digits' shapes are bent, in pixels of their 8x8 sources.
        stroke: how much thicker or thinner their strokes are drawn, in levels of ink, of 255.
    """

    def __init__(
        self,
        split: Literal["train", "test"],
        count: int,
        task: Literal["detection", "segmentation"],
        *,
        seed: int = 0,
        size: int = 128,
        fewest: int = 1,
        most: int = MOST_DIGITS,
        sparse: float = 0.0,
        largest: float = 0.0,
        bright: int = 0,
        bend: float = 0.0,
        stroke: float = 0.0,
    ) -> None:
        """Hold the digits of one side of the fixed split.

        Args:
            split: whose digits the scenes show.
            count: number of scenes.
            task: what `[index]` gives beside the picture.
            seed: of all scenes.
            size: height and width in pixels.
            fewest: digits tried in a scene at least: fuller scenes teach more for the same computation.
            most: digits tried in a scene at most, of 24.
            sparse: share of the scenes, by chance, that have 1 to `fewest - 1` digits instead: a model that never saw
                an empty ground may take it for a digit.
            largest: size of the largest digits in pixels, of at most 0.8 of the side; 0 for 0.44 of it. The smallest
                have 14.
            bright: in so many scenes at the start digits are brighter than the background, never darker: a model with
                fresh weights, which tells sign from sign late, begins to read with them.
            bend: nine points of each digit, corners, middles of the sides and the middle, move by up to so many pixels
                of its 8x8 source each way, and the digit with them: the few hundred sources become more hands than
                they came from. At most 2.
            stroke: the level of ink from which a stroke begins moves by up to so much of 255, down or up, so that its
                strokes are thicker or thinner. At most 60.

        Raises:
            ValueError: an unknown split or task, sizes that hold no digit, or scikit-learn is not installed.
        """
        if task not in ("detection", "segmentation"):
            raise ValueError(f"task must be 'detection' or 'segmentation', got {task!r}")
        if size < LEAST_SIDE or count < 1 or seed < 0 or bright < 0:
            least = f"size must be at least {LEAST_SIDE}, count 1, seed and bright 0"
            raise ValueError(f"{least}, got {size}, {count}, {seed} and {bright}")
        if largest and not SMALLEST <= largest <= ROOM * size:
            raise ValueError(f"largest must be 0 or lie in {SMALLEST} to {ROOM * size}, got {largest}")
        if not 0 <= bend <= MOST_BENT:
            raise ValueError(f"bend must lie in 0 to {MOST_BENT} pixels, got {bend}")
        if not 0 <= stroke <= MOST_STROKE:
            raise ValueError(f"stroke must lie in 0 to {MOST_STROKE} levels of ink, got {stroke}")
        if not 1 <= fewest <= most <= MOST_LAID:
            raise ValueError(f"fewest and most must lie in 1 to {MOST_LAID}, in order, got {fewest} and {most}")
        if not 0 <= sparse <= 1 or (sparse and fewest == 1):
            raise ValueError(f"sparse is a share of scenes with fewer than fewest digits, got {sparse} and {fewest}")
        self.classes = CLASSES if task == "detection" else ("background", *CLASSES)
        self.category_ids = tuple(range(1, len(CLASSES) + 1))
        self.split, self.task, self.seed, self.side, self.fewest = split, task, seed, size, fewest
        self.most, self.largest, self.bright, self.bend, self.stroke = most, largest, bright, bend, stroke
        self.sparse = sparse
        self._count = count
        digits = Digits(split)
        self._sources = [padded(picture) for picture, _ in digits]
        self._labels = digits.labels

    def __len__(self) -> int:
        """Count the scenes."""
        return self._count

    def __getitem__(self, index: int) -> "tuple[Image.Image, Instances | NDArray[np.uint8]]":
        """Return an RGB picture and what is in it: its instances, or (size, size) class indices."""
        layout, rng = self._layout(index)
        picture = _paint(layout, rng, bright=index < self.bright)
        if self.task == "detection":
            return picture, _instances(layout)
        return picture, _classes(layout)

    def histogram(self, most: int | None = None) -> "NDArray[np.int64]":
        """Count the pixels of each class of segmentation, (256,), in at most `most` scenes, evenly spread."""
        counts = np.zeros(256, np.int64)
        for index in range(0, len(self), -(-len(self) // (most or len(self)))):
            counts += np.bincount(_classes(self._layout(index)[0]).ravel(), minlength=256)
        return counts

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a scene."""
        return self.side, self.side

    def name(self, index: int) -> str:
        """Return what errors call a scene."""
        return f"digits-{self.split}-{self.seed}-{index}"

    def placed(self, index: int) -> tuple[PlacedDigit, ...]:
        """The digits of a scene, in the order in which they were laid down."""
        found = _instances(self._layout(index)[0])
        boxes = found.boxes.int().tolist()
        return tuple(
            PlacedDigit(digit=digit, box=(left, top, right, bottom))
            for digit, (left, top, right, bottom) in zip(found.labels.tolist(), boxes, strict=True)
        )

    def ground_truth(self) -> dict[str, Any]:
        """All objects as COCO's JSON values; ids count from 1."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(len(self)):
            image_id = index + 1
            images.append({"id": image_id, "file_name": self.name(index), "height": self.side, "width": self.side})
            found = _instances(self._layout(index)[0])
            assert found.masks is not None
            for box, label, mask in zip(found.boxes.tolist(), found.labels.tolist(), found.masks, strict=True):
                left, top, right, bottom = box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": self.category_ids[label],
                        "bbox": [left, top, right - left, bottom - top],
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                        "segmentation": encode_mask(mask),
                    }
                )
        categories = [{"id": id_, "name": name} for id_, name in zip(self.category_ids, CLASSES, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _layout(self, index: int) -> tuple[_Layout, np.random.Generator]:
        """Place the digits; the generator goes on to paint them, so placing alone gives the same scene."""
        if not 0 <= index < self._count:
            raise IndexError(f"scene {index} of {self._count}")
        rng = np.random.default_rng((self.seed, ("train", "test").index(self.split), index))
        layout, largest = _Layout(self.side), self.largest or LARGEST * self.side
        sparse = self.sparse and rng.random() < self.sparse
        fewest, most = (1, self.fewest - 1) if sparse else (self.fewest, self.most)
        for _ in range(int(rng.integers(fewest, most + 1))):
            source = int(rng.integers(len(self._sources)))
            cover = enlarged(self._sources[source], largest, self.bend, rng, self.stroke)
            layout.lay(self._labels[source], cover, rng)
        return layout, rng


def _paint(layout: _Layout, rng: np.random.Generator, *, bright: bool) -> Image.Image:
    side = len(layout.owner)
    shade = rng.uniform(45, 255 - CONTRASTS[1] if bright else 210)
    coarse = shade + rng.uniform(-25, 25, 3) + rng.uniform(-1, 1, (5, 5, 3)) * rng.uniform(5, 35)
    clouds = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    pixels = np.array(clouds, np.float32)
    for _, top, left, cover in layout.inks:
        part = pixels[top : top + cover.shape[0], left : left + cover.shape[1]]
        part += (_colour(shade, rng, bright=bright) - part) * (cover * np.float32(1 / 255))[..., None]
    grain = rng.integers(0, 256, pixels.shape, dtype=np.uint8)  # even noise: four times as fast as normal noise
    pixels += (grain - np.float32(127.5)) * np.float32(rng.uniform(0.04, 0.2))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _colour(shade: float, rng: np.random.Generator, *, bright: bool) -> "NDArray[np.float32]":
    """A colour that is brighter or darker than the background by enough to be read, whatever its hue."""
    contrast = rng.uniform(*CONTRASTS)
    brighter = bright or (shade + contrast <= 255 and (shade - contrast < 0 or rng.random() < 0.5))
    tint = rng.uniform(-50, 50, 3)
    tint -= tint @ _LUMINANCE
    return (shade + (contrast if brighter else -contrast) + tint).clip(0, 255).astype(np.float32)


def _classes(layout: _Layout) -> "NDArray[np.uint8]":
    """What each pixel shows: 0 for the background, else the digit and 1."""
    return np.array([0, *(digit + 1 for digit in layout.labels())], np.uint8)[layout.owner]


def _instances(layout: _Layout) -> Instances:
    """Masks and boxes of what is seen of each digit."""
    import torch

    numbers = np.arange(1, len(layout.inks) + 1, dtype=np.uint8)
    masks = layout.owner == numbers[:, None, None]
    rows, columns = masks.any(2), masks.any(1)
    side = len(layout.owner)
    edges = (
        columns.argmax(1),
        rows.argmax(1),
        side - columns[:, ::-1].argmax(1),
        side - rows[:, ::-1].argmax(1),
    )
    return Instances(
        boxes=torch.from_numpy(np.stack(edges, 1).astype(np.float32)),
        labels=torch.tensor(layout.labels()),
        masks=torch.from_numpy(masks),
    )
