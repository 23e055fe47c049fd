"""Folders of pictures and index masks: labels become classes once, and every fault is named."""

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from davit.class_names import ADE20K
from davit.data.index_png import read_mask
from davit.data.masks import MaskFolder, mask_parts
from davit.decoding import ImageError
from davit.recipes import make_recipe
from davit.records import assign
from davit.train.sides import list_images
from odd_pictures import scene

LABELS = np.random.default_rng(0)


def write(path: Path, labels: np.ndarray, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8))
    if mode == "P":
        image = image.convert("P")
        image.putpalette([(7 * value) % 256 for value in range(768)])
        image.putdata(labels.ravel().tolist())
    image.save(path, bits=8) if mode == "P" else image.save(path)


def make(
    root: Path,
    *,
    pictures: str = "{}",
    masks: str = "{}_masks",
    parts: tuple[str, ...] = ("train", "val"),
    prefix: str = "a",
    values: int = 3,
    mode: str = "L",
) -> dict[str, np.ndarray]:
    """Three pictures a part with masks of random labels under `values`; returns the labels by picture."""
    made = {}
    for part in parts:
        for number in range(3):
            height, width = int(LABELS.integers(9, 30)), int(LABELS.integers(9, 30))
            labels = LABELS.integers(0, values, (height, width))
            stem = f"{prefix}{number}.b"
            picture = root / pictures.format(part) / f"{stem}.jpg"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene(random.Random(number), width, height)).save(picture)
            write(root / masks.format(part) / f"{stem}.png", labels, mode)
            made[f"{part}/{stem}"] = labels
    return made


def listed(root: Path, *names: str) -> Path:
    (root / "classes.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.mark.parametrize(
    ("pictures", "masks"),
    [
        ("{}", "{}_masks"),
        ("{}", "{}annot"),
        ("{}", "masks/{}"),
        ("images/{}", "masks/{}"),
        ("images/{}", "annotations/{}"),
    ],
)
@pytest.mark.parametrize("mode", ["L", "P"])
def test_layouts(tmp_path: Path, pictures: str, masks: str, mode: str) -> None:
    made = make(tmp_path, pictures=pictures, masks=masks, mode=mode)
    listed(tmp_path, "sky", "tree", "road")
    assert set(mask_parts(tmp_path)) == {"train", "val"}
    for part in ("train", "val"):
        folder = pickle.loads(pickle.dumps(MaskFolder(tmp_path, part)))
        assert folder.classes == ("sky", "tree", "road")
        assert (len(folder), folder.is_ade20k, folder.unpaired) == (3, False, ())
        for index in range(3):
            picture, labels = folder[index]
            expected = made[f"{part}/a{index}.b"]
            assert labels.dtype == np.uint8
            assert np.array_equal(labels, expected)
            assert folder.size(index) == expected.shape == (picture.height, picture.width)
            assert folder.name(index).endswith(f"a{index}.b.jpg")
            assert folder.file(index)[1] == Path(folder.name(index)).read_bytes()


@pytest.mark.parametrize("with_list", [True, False])
def test_ade20k_labels_count_from_one_and_zero_is_no_class(tmp_path: Path, with_list: bool) -> None:
    parts = ("training", "validation")
    made = make(tmp_path, pictures="images/{}", masks="annotations/{}", parts=parts, prefix="ADE_train_0", values=151)
    if with_list:
        lines = [f"{n}\t0.1\t7\t3\t{name}, also {n}\n" for n, name in enumerate(ADE20K, 1)]
        (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + "".join(lines))
    assert set(mask_parts(tmp_path)) == {"train", "val"}
    folder = MaskFolder(tmp_path, "val")
    assert folder.is_ade20k
    assert folder.classes == ADE20K
    for index in range(3):
        stored = made[f"validation/ADE_train_0{index}.b"]
        expected = np.where(stored == 0, 255, stored - 1)
        assert np.array_equal(folder[index][1], expected)
    write(folder.masks[0], np.full((9, 9), 151))
    with pytest.raises(ValueError, match=r"label 151, the classes have 1 to 150"):
        folder.labels(0)


def test_ade20k_has_its_150_classes() -> None:
    assert len(set(ADE20K)) == 150
    places = {1: "wall", 3: "sky", 13: "person", 45: "chest of drawers", 90: "television", 150: "flag"}
    assert {number: ADE20K[number - 1] for number in places} == places
    assert all(name == name.strip() for name in ADE20K)


def test_its_layout_alone_does_not_make_a_folder_ade20k(tmp_path: Path) -> None:
    make(tmp_path, pictures="images/{}", masks="annotations/{}", parts=("training",))
    with pytest.raises(ValueError, match=r"classes.txt is missing"):
        MaskFolder(tmp_path, "train")
    folder = MaskFolder(listed(tmp_path, "a", "b", "c"), "train")
    assert not folder.is_ade20k
    assert folder.labels(0).max() < 3


def test_other_labels_are_errors_unless_ignored(tmp_path: Path) -> None:
    make(listed(tmp_path, "sky", "tree"), values=2)
    path = tmp_path / "train_masks" / "a1.b.png"
    labels = np.asarray(Image.open(path)).copy()
    labels[0, :3] = 11, 255, 12
    write(path, labels)
    with pytest.raises(ValueError, match=r"a1\.b\.png has the label 11, 12, the classes have 0 to 1.*ignore=11, 12"):
        MaskFolder(tmp_path, "train")[1]
    with pytest.raises(ValueError, match=r"label 12,"):
        MaskFolder(tmp_path, "train", ignore=(11,))[1]
    assert MaskFolder(tmp_path, "train", ignore=(11, 12))[1][1][0, :3].tolist() == [255, 255, 255]
    with pytest.raises(ValueError, match="300"):
        MaskFolder(tmp_path, "train", ignore=(300,))


def test_a_run_stops_before_its_first_step_where_labels_mean_nothing(tmp_path: Path) -> None:
    recipe = assign(make_recipe("ade20k.upernet", "davit_pico", init=""), "data.root", str(tmp_path))
    make(listed(tmp_path, "sky", "tree"), values=2)
    assert len(list_images(recipe).train) == 3
    masks = sorted((tmp_path / "train_masks").glob("*.png"))
    stored = [np.asarray(Image.open(path)).copy() for path in masks]
    write(masks[1], stored[1] + 1)  # counts from 1
    with pytest.raises(ValueError, match=r"a1\.b\.png has the label 2"):
        list_images(recipe)
    for path, labels in zip(masks, stored, strict=True):
        write(path, np.full_like(labels, 255))
    with pytest.raises(ValueError, match="no pixel counts"):
        list_images(recipe)


def test_classes_of_a_model_are_matched_by_name(tmp_path: Path) -> None:
    made = make(listed(tmp_path, "sky", "tree", "road"))
    folder = MaskFolder(tmp_path, "val", ("road", "car", "sky", "tree"))
    assert folder.classes == ("road", "car", "sky", "tree")
    assert folder.missing == ("car",)
    assert np.array_equal(folder.labels(2), np.array([2, 3, 0])[made["val/a2.b"]])
    with pytest.raises(ValueError, match=r"'tree'.*Did you mean 'trees'"):
        MaskFolder(tmp_path, "val", ("road", "sky", "trees"))


def test_the_list_of_classes_may_lie_elsewhere(tmp_path: Path) -> None:
    make(tmp_path / "data")
    elsewhere = tmp_path / "names.txt"
    elsewhere.write_text("\ufeffsky\ntree\nroad", "utf-8")
    assert MaskFolder(tmp_path / "data", "val", class_list=elsewhere).classes == ("sky", "tree", "road")
    with pytest.raises(ValueError, match=r"other\.txt is missing"):
        MaskFolder(tmp_path / "data", "val", class_list=tmp_path / "other.txt")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sky\n\ntree\n", "line 2 is empty"),
        ("sky\ntree\nsky\n", "line 3 repeats 'sky'"),
        ("", "names 0 classes"),
        ("\n".join(map(str, range(256))), "names 256 classes"),
    ],
)
def test_faulty_lists_of_classes(tmp_path: Path, text: str, reason: str) -> None:
    make(tmp_path)
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"classes\.txt.*{reason}"):
        MaskFolder(tmp_path, "train")


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no pictures with masks: expected train/"):
        MaskFolder(tmp_path, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"train has no masks in .*train_masks or .*trainannot or .*masks/train"):
        MaskFolder(tmp_path, "train")
    (tmp_path / "train_masks").mkdir()
    with pytest.raises(ValueError, match="train holds no pictures"):
        MaskFolder(tmp_path, "train")
    make(listed(tmp_path, "a", "b", "c"), parts=("train",))
    with pytest.raises(ValueError, match=r"no part 'val' with masks; it has train"):
        MaskFolder(tmp_path, "val")
    (tmp_path / "train_masks" / "a1.b.png").rename(tmp_path / "train_masks" / "else.png")
    with pytest.raises(ValueError, match=r"1 of 3 pictures in .*train have no PNG mask in .*train_masks: a1\.b\.jpg"):
        MaskFolder(tmp_path, "train")
    (tmp_path / "train" / "a1.b.jpg").unlink()
    assert [path.name for path in MaskFolder(tmp_path, "train").unpaired] == ["else.png"]
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "a0.b.png")
    with pytest.raises(ValueError, match=r"a0\.b\.jpg and .*a0\.b\.png would share one mask"):
        MaskFolder(tmp_path, "train")


def test_deeper_folders_keep_their_own_names(tmp_path: Path) -> None:
    listed(tmp_path, "a", "b")
    for town, label in (("ulm", 0), ("bonn", 1)):
        (tmp_path / "train" / town).mkdir(parents=True)
        Image.new("RGB", (5, 4)).save(tmp_path / "train" / town / "1.png")
        write(tmp_path / "train_masks" / town / "1.png", np.full((4, 5), label))
    (tmp_path / "train" / ".hidden.png").touch()
    folder = MaskFolder(tmp_path, "train")
    assert [path.parent.name for path in folder.paths] == ["bonn", "ulm"]
    assert [int(folder.labels(index)[0, 0]) for index in range(2)] == [1, 0]


def test_a_mask_of_another_size_names_both(tmp_path: Path) -> None:
    make(listed(tmp_path, "a", "b", "c"))
    write(tmp_path / "val_masks" / "a2.b.png", np.zeros((7, 8)))
    with pytest.raises(ImageError, match=r"a2\.b\.jpg has \d+x\d+ pixels, its mask .*a2\.b\.png 8x7"):
        MaskFolder(tmp_path, "val")[2]


def test_masks_that_cannot_be_read_are_image_errors(tmp_path: Path) -> None:
    make(listed(tmp_path, "a", "b", "c"))
    folder = MaskFolder(tmp_path, "train")
    path = folder.masks[1]
    good = path.read_bytes()
    for bad in (b"", b"no picture", good[: len(good) - 20], good[:30]):
        path.write_bytes(bad)
        with pytest.raises(ImageError, match=r"a1\.b\.png"):
            folder.labels(1)
    with pytest.raises(ImageError, match=r"a1\.b\.png"):
        folder.size(1)
    Image.new("RGB", (5, 5)).save(path)
    with pytest.raises(ImageError, match="colours"):
        folder.labels(1)
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(path)
    with pytest.raises(ImageError, match="label 1000"):
        folder.labels(1)
    folder.paths[1].write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"a1\.b\.jpg"):
        folder[1]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_values_are_those_stored_whatever_the_depth(tmp_path: Path, bits: int) -> None:
    """Pillow stretches grey values of 2 and 4 bits to 255; here label 1 stays 1."""
    labels = LABELS.integers(0, 2**bits, (6, 8))
    palette = Image.fromarray(labels.astype(np.uint8)).convert("P")
    palette.putdata(labels.ravel().tolist())
    palette.save(tmp_path / "p.png", bits=bits)
    assert np.array_equal(read_mask(tmp_path / "p.png"), labels)
    (tmp_path / "g.png").write_bytes(grey_png(labels, bits))
    assert np.array_equal(read_mask(tmp_path / "g.png"), labels)


def grey_png(labels: np.ndarray, bits: int) -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = labels.shape
    digits = ["".join(f"{value:0{bits}b}" for value in row) for row in labels]
    rows = b"".join(b"\0" + int(row, 2).to_bytes(width * bits // 8, "big") for row in digits)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_the_histogram_counts_classes(tmp_path: Path) -> None:
    made = make(listed(tmp_path, "a", "b", "c"), values=4)
    folder = MaskFolder(tmp_path, "train", ignore=(3,))
    everything = np.concatenate([labels.ravel() for name, labels in made.items() if name.startswith("train")])
    counts = folder.histogram()
    assert counts[:3].tolist() == [(everything == label).sum() for label in range(3)]
    assert counts[255] == (everything == 3).sum()
    assert counts.sum() == everything.size
    assert folder.histogram(most=1).sum() == folder.labels(0).size
    assert folder.histogram(most=2).sum() == folder.labels(0).size + folder.labels(2).size
