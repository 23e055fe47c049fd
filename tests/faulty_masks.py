"""Pictures with index masks, and seeded faults in them: what a check of such a folder must find."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from odd_pictures import encode, exif, png

NAMES = ("sky", "tree", "road", "car")
COLOURS = [70, 130, 180, 107, 142, 35, 128, 64, 128, 0, 0, 142]
Fault = Callable[[Path], None]


def noise(seed: int, width: int, height: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def areas(seed: int, width: int, height: int, classes: int = 4) -> np.ndarray:
    """Patches of all classes."""
    rng = np.random.default_rng(seed)
    patches = np.concatenate([np.arange(classes), rng.integers(0, classes, 20)])[:20]
    rng.shuffle(patches)
    enlarged = Image.fromarray(patches.reshape(4, 5).astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(enlarged)


def indexed(labels: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(labels.astype(np.uint8), "P")
    image.putpalette(colours + [0] * (768 - len(colours)))
    return image


def size_of(number: int) -> tuple[int, int]:
    return 60 + 4 * (number % 9), 48 + 4 * (number % 7)


def write_masks(root: Path) -> None:
    """Two parts of JPEG and PNG pictures of several sizes; masks are grey or have a palette, and some hold 255."""
    for start, part, count in ((0, "train", 8), (100, "val", 4)):
        (root / "images" / part).mkdir(parents=True)
        (root / "masks" / part).mkdir(parents=True)
        for number in range(start, start + count):
            width, height = size_of(number)
            name, form = (f"{number}.jpg", "JPEG") if number % 2 else (f"{number}.png", "PNG")
            (root / "images" / part / name).write_bytes(encode(noise(number, width, height), form))
            labels = areas(number, width, height).copy()
            labels[:2] = 255 if number % 3 else labels[:2]
            image = Image.fromarray(labels) if number % 2 else indexed(labels, COLOURS)
            image.save(root / "masks" / part / f"{number}.png")
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")


def mask(root: Path, number: int = 5, part: str = "train") -> Path:
    return root / "masks" / part / f"{number}.png"


def relabel(change: Callable[[np.ndarray], object], *numbers: int) -> Fault:
    """Change labels, in grey, of some masks or of all."""

    def apply(root: Path) -> None:
        for path in sorted((root / "masks").rglob("*.png")):
            if not numbers or int(path.stem) in numbers:
                labels = np.asarray(Image.open(path)).copy()
                changed = change(labels)
                Image.fromarray(labels if changed is None else np.asarray(changed).astype(np.uint8)).save(path)

    return apply


def replace_label(old: int, new: int, *numbers: int) -> Fault:
    return relabel(lambda labels: np.where(labels == old, new, labels), *numbers)


def put(name: str, data: bytes) -> Fault:
    def apply(root: Path) -> None:
        (root / name).write_bytes(data)

    return apply


def names(*lines: str) -> Fault:
    return put("classes.txt", "\n".join(lines).encode())


def patch(labels: np.ndarray, *values: int) -> None:
    labels[10, 10 : 10 + len(values)] = values


def rare(labels: np.ndarray) -> None:
    labels[labels == 3] = 0
    patch(labels, 3)


def rotated(root: Path) -> None:
    path = mask(root)
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)


def turned(orientation: int) -> Fault:
    return put("images/train/5.jpg", encode(noise(5, *size_of(5)), "JPEG", exif=exif(orientation)))


def in_colours(root: Path) -> None:
    path = mask(root, 4)
    Image.open(path).convert("RGB").save(path)


def grey_channels(root: Path) -> None:
    path = mask(root)
    Image.merge("RGB", [Image.open(path)] * 3).save(path)


def with_alpha(root: Path) -> None:
    path = mask(root)
    Image.open(path).convert("LA").save(path)


def deep(root: Path) -> None:
    path = mask(root)
    Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 100).save(path)


def other_palette(root: Path) -> None:
    """A program that stores the colours in use, in their order of appearance."""
    path = mask(root, 6)
    swapped = COLOURS[3:6] + COLOURS[:3] + COLOURS[6:]
    indexed(np.array([1, 0, 2, 3], np.uint8)[np.minimum(np.asarray(Image.open(path)), 3)], swapped).save(path)


def copied(target: str, *, mask_seed: int = 5) -> Fault:
    """Picture 5 once more, under another name, with its own mask or another one."""

    def apply(root: Path) -> None:
        for kind in ("images", "masks"):
            for old in (root / kind).glob(f"{target}.*"):
                old.unlink()
        (root / "images" / f"{target}.jpg").write_bytes((root / "images" / "train" / "5.jpg").read_bytes())
        labels = np.asarray(Image.open(mask(root))) if mask_seed == 5 else areas(mask_seed, *size_of(5))
        Image.fromarray(labels).save(root / "masks" / f"{target}.png")

    return apply


def same_mask(root: Path) -> None:
    """Video frames of one size, of which one got its neighbour's mask."""
    (root / "images" / "train" / "5.jpg").write_bytes(encode(noise(77, *size_of(3)), "JPEG"))
    mask(root).write_bytes(mask(root, 3).read_bytes())


def rename(old: str, new: str) -> Fault:
    def apply(root: Path) -> None:
        (root / new).parent.mkdir(exist_ok=True)
        (root / old).rename(root / new)

    return apply


FAULTS: dict[str, tuple[str, Fault, str]] = {
    "no-mask": ("error", lambda root: mask(root).unlink(), "5.jpg"),
    "no-mask jpeg": ("error", rename("masks/train/5.png", "masks/train/5.jpg"), "5.jpg is none"),
    "no-mask suffix": ("error", rename("masks/train/5.png", "masks/train/5_labels.png"), "is it 5_labels.png?"),
    "no-mask deeper": ("error", rename("masks/train/5.png", "masks/train/a/5.png"), "is it a/5.png?"),
    "no-picture": ("warning", lambda root: (root / "images" / "train" / "5.jpg").unlink(), "masks/train/5.png"),
    "no-pictures": ("error", lambda root: [p.unlink() for p in (root / "images" / "val").iterdir()], "images/val"),
    "same-stem": ("error", put("images/train/5.png", encode(noise(9, *size_of(5)), "PNG")), "5.png"),
    "missing-part": ("warning", rename("masks/val", "masks/vla"), "'val'"),
    "size-mismatch": ("error", rotated, "train/5.png: has 68x80 pixels, but its picture"),
    "size-mismatch turned": ("error", turned(6), "turned as its EXIF says"),
    "turned": ("note", turned(3), "5.jpg"),
    "colour-mask": ("error", in_colours, "4.png: is no index mask: it holds colours (RGB), 5 of them: write the label"),
    "colour-mask grey": ("error", grey_channels, "5 of them: they are grey, so keep one channel"),
    "colour-mask alpha": ("error", with_alpha, "5.png: is no index mask: it holds colours (LA)"),
    "colour-mask picture": ("error", put("masks/train/5.png", encode(noise(5, *size_of(5)), "PNG")), "is it a"),
    "deep-mask": ("error", deep, "values up to 25,500"),
    "not-png": ("error", put("masks/train/5.png", encode(areas(5, *size_of(5)), "JPEG")), "is a JPEG file"),
    "not-an-image": ("error", put("masks/train/5.png", b"<!DOCTYPE html>"), "masks/train/5.png"),
    "empty-file": ("error", put("masks/train/5.png", b""), "masks/train/5.png"),
    "too-large": ("error", put("masks/train/5.png", png(30_000, 30_000)), "masks/train/5.png"),
    "damaged": ("error", put("masks/train/5.png", encode(areas(5, *size_of(5)), "PNG")[:-30]), "masks/train/5.png"),
    "damaged picture": ("error", put("images/train/5.jpg", encode(noise(5, 80, 68), "JPEG")[:700]), "5.jpg"),
    "unknown-label": ("error", relabel(lambda x: patch(x, 9, 9, 17), 5), "5.png: has the label 9 in 2 pixels, 17 in 1"),
    "unknown-label next": ("error", relabel(lambda x: patch(x, 4), 5), "5.png: has the label 4 in 1 pixels"),
    "unknown-label smoothed": ("error", relabel(lambda x: patch(x, *range(30, 60)), 5), "smoothed"),
    "all-ignored": ("warning", relabel(lambda x: np.full_like(x, 255), 5), "train/5.png"),
    "nothing-counts": ("error", relabel(lambda x: np.full_like(x, 255)), "classes.txt"),
    "mostly-ignored": ("note", relabel(lambda x: np.copyto(x[:, 20:], 255), *range(8)), "of the pixels of train"),
    "shifted-labels": ("error", relabel(lambda x: np.where(x == 255, 255, x + 1)), "never have 0: take 1 off"),
    "shifted-labels zero": ("error", relabel(lambda x: np.where(x == 255, 0, x + 1)), "--ignore 4"),
    "scaled-labels": ("error", relabel(lambda x: np.minimum(x, 3) * 85), "0, 85, 170 and 255"),
    "unlearnt-class": ("error", replace_label(3, 0, *range(8)), "'car' (label 3)"),
    "empty-class": ("warning", replace_label(3, 0), "'car' (label 3)"),
    "unscored-class": ("warning", replace_label(3, 0, *range(100, 104)), "'car' (label 3)"),
    "imbalance": ("note", relabel(rare), "'car' 0.0"),
    "no-class-list": ("error", lambda root: (root / "classes.txt").unlink(), "--class-list"),
    "bad-class-list": ("error", names(), "names 0 classes"),
    "bad-class-list bytes": ("error", put("classes.txt", b"\xff\xfe\x00"), "UTF-8"),
    "empty-class-name": ("error", names("sky", "", "road", "car"), "label 1"),
    "same-class": ("error", names("sky", "tree", "sky", "car"), "label 0 and 2 'sky'"),
    "similar-classes": ("error", names("sky", "tree", "Tree", "car"), "'tree', 'Tree'"),
    "palette-differs": ("warning", other_palette, "train/6.png"),
    "same-mask": ("warning", same_mask, "train/5.png"),
    "leak": ("error", copied("val/101"), "val/101.jpg"),
    "two-labels": ("error", copied("train/5x", mask_seed=9), "train/5x.jpg"),
    "duplicate": ("warning", copied("train/7"), "train/7.jpg"),
    "ignored": ("note", put("masks/train/notes.txt", b"note"), "notes.txt"),
    "hidden": ("note", put("images/train/.5.jpg", b"note"), ".5.jpg"),
    "wrong-extension": ("warning", put("images/train/5.jpg", encode(noise(5, *size_of(5)), "PNG")), "5.jpg"),
}  # fmt: skip
ALSO = {  # what the same fault makes true as well
    "no-mask suffix": {"no-picture"},
    "no-mask deeper": {"no-picture"},
    "no-pictures": {"no-picture"},
    "same-stem": {"same-mask"},
    "nothing-counts": {"all-ignored"},
    "no-class-list": {"labels"},
    "bad-class-list": {"labels"},
    "bad-class-list bytes": {"labels"},
}
