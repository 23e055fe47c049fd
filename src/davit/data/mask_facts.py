"""What one index mask is: measured once, in a loader's process, for every check that asks about it."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from davit.data.folder import file_bytes
from davit.data.image_facts import ImageFacts, image_facts, in_order
from davit.data.index_png import read_mask
from davit.decoding import FORMATS, MAX_PIXELS, QUIET, ImageError, show_path
from davit.models.segmenter_config import IGNORED

_COLOURS = 256  # more are not counted
_ORIENTATION = 0x0112
Pair = tuple[Path, Path]  # a picture and its mask


@dataclass(frozen=True)
class MaskFacts:
    """What is known of one mask, and of the picture it belongs to.

    Attributes:
        file: the file; its faults are those of images and `not-png`, `colour-mask` and `deep-mask`.
        labels: number of pixels of each label in it; empty where it was not decoded.
        palette: red, green and blue of the labels in it, where it has a palette.
        content: hash of size and labels.
        orientation: how the picture is to be turned, as its EXIF says; 1 is upright.
    """

    file: ImageFacts
    labels: dict[int, int] = field(default_factory=dict)
    palette: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    content: str = ""
    orientation: int = 1


def measure_masks(pairs: Sequence[Pair], *, decode: bool, workers: int) -> Iterator[MaskFacts]:
    """Yield the facts of every mask, in order, measured in `workers` processes (0: in this one).

    Args:
        pairs: pictures and their masks.
        decode: count the labels too; otherwise only bytes and headers are looked at.
        workers: number of processes.
    """
    return in_order(_Facts(pairs, decode), workers)


class _Facts(Dataset[MaskFacts]):
    def __init__(self, pairs: Sequence[Pair], decode: bool) -> None:
        self.pairs, self.decode = pairs, decode

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> MaskFacts:
        picture, mask = self.pairs[index]
        return replace(mask_facts(mask, decode=self.decode), orientation=_orientation(picture))


def mask_facts(path: Path, *, decode: bool) -> MaskFacts:
    """Look at one mask, without its picture."""
    name = show_path(path)
    try:
        data = file_bytes(path)
    except OSError as error:
        return MaskFacts(ImageFacts(name, fault="unreadable", reason=error.strerror or str(error)))
    file = image_facts(name, data, decode=False)
    if not file.fault and file.form != "PNG":
        file = replace(file, fault="not-png", reason=f"is a {file.form} file by its content, expected a PNG of labels")
    elif not file.fault and file.width * file.height > MAX_PIXELS:
        limit = f"{file.width}x{file.height} pixels are over the limit of {MAX_PIXELS:,}"
        file = replace(file, fault="too-large", reason=limit)
    elif not file.fault and file.mode in ("RGB", "RGBA", "LA"):
        file = replace(
            file, fault="colour-mask", reason=_colours(data, file.mode) if decode else _in_colours(file.mode)
        )
    if file.fault or not decode:
        return MaskFacts(file)
    return _counted(file, path, data)


def _counted(file: ImageFacts, path: Path, data: bytes) -> MaskFacts:
    """Facts with the labels."""
    try:
        if file.mode.startswith("I") and (most := _most(data)) > IGNORED:
            reason = f"has 16 bits a pixel and values up to {most:,}, where labels are 0 to {IGNORED}"
            return MaskFacts(replace(file, fault="deep-mask", reason=reason))
        values = read_mask(path)
    except ImageError as error:
        return MaskFacts(replace(file, fault="damaged", reason=str(error).removeprefix(f"{file.name}: ")))
    counts = np.bincount(values.ravel(), minlength=IGNORED + 1)
    labels = {int(label): int(counts[label]) for label in np.flatnonzero(counts)}
    content = hashlib.blake2b(values.tobytes() + repr(values.shape).encode(), digest_size=16).hexdigest()
    return MaskFacts(file, labels, _palette(data, labels), content)


def _most(data: bytes) -> int:
    try:
        with QUIET(), Image.open(io.BytesIO(data), formats=("PNG",)) as mask:
            return int(np.asarray(mask).max())
    except Exception:  # of any type on damaged bytes; `read_mask` will say it
        return 0


def _palette(data: bytes, labels: dict[int, int]) -> dict[int, tuple[int, int, int]]:
    with QUIET(), Image.open(io.BytesIO(data), formats=("PNG",)) as mask:
        flat = mask.getpalette("RGB") if mask.mode == "P" else None
    if not flat:
        return {}
    return {
        label: (flat[3 * label], flat[3 * label + 1], flat[3 * label + 2]) for label in labels if 3 * label < len(flat)
    }


def _colours(data: bytes, mode: str) -> str:
    """Say what is in a mask of colours."""
    try:
        with QUIET(), Image.open(io.BytesIO(data), formats=("PNG",)) as mask:
            found = mask.convert("RGB").getcolors(_COLOURS)
    except Exception as error:  # as above
        return f"{_in_colours(mode)}, and damaged ({error})"
    if found is None:
        return f"{_in_colours(mode)}, more than {_COLOURS} of them: is it a picture?"
    grey = all(len(set(colour)) == 1 for _, colour in found if isinstance(colour, tuple))
    way = "they are grey, so keep one channel" if grey else "write the label of each instead"
    return f"{_in_colours(mode)}, {len(found)} of them: {way}"


def _in_colours(mode: str) -> str:
    return f"is no index mask: it holds colours ({mode})"


def _orientation(picture: Path) -> int:
    try:
        with QUIET(), Image.open(picture, formats=FORMATS) as image:
            return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # as above; then it is shown as stored
        return 1
