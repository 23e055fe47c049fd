"""What one image file is: measured once, in a loader's process, for every check that asks about it."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from davit.data.folder import file_bytes
from davit.data.loader import WORKER_TIMEOUT
from davit.data.ranges import ShardError
from davit.decoding import FORMATS, QUIET, ImageError, read_image, show_path

T = TypeVar("T")

_IN_A_BATCH = 16


class ImageFiles(Protocol):
    """Files of images."""

    def __len__(self) -> int:
        """Count them."""
        ...

    def file(self, index: int) -> tuple[str, bytes]:
        """What errors call one, and its bytes."""
        ...

    def name(self, index: int) -> str:
        """What errors call one."""
        ...


@dataclass(frozen=True)
class ImageFacts:
    """What is known of one file.

    Attributes:
        name: what errors call it.
        size: number of bytes.
        sha256: hash of the bytes.
        pixels_hash: hash of the picture as it is shown, so that copies in other formats are equal.
        form: the format of its content, as Pillow names it; empty where it is no picture.
        mode: Pillow's mode.
        width: in pixels, as stored.
        height: likewise.
        frames: more than one in animations and files of several pages.
        fault: kind of what is wrong: `unreadable`, `empty-file`, `not-an-image`, `too-large` or `damaged`.
        reason: what is wrong, in a sentence.
    """

    name: str
    size: int = 0
    sha256: str = ""
    pixels_hash: str = ""
    form: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    frames: int = 1
    fault: str = ""
    reason: str = ""


def measure(files: ImageFiles, *, decode: bool, workers: int) -> Iterator[ImageFacts]:
    """Yield the facts of every file, in order, measured in `workers` processes (0: in this one).

    Args:
        files: what to look at.
        decode: decode the pixels too; otherwise only bytes and headers are looked at.
        workers: number of processes.

    Raises:
        ShardError: a shard cannot be read; one image file that cannot is a fault.
    """
    for fact in in_order(_Facts(files, decode), workers):
        if isinstance(fact, ShardError):
            raise fact
        yield fact


def in_order(facts: Dataset[T], workers: int) -> Iterator[T]:
    """Yield every item, made in `workers` processes (0: in this one)."""
    loader = DataLoader(
        facts,
        batch_size=_IN_A_BATCH,
        num_workers=workers,
        collate_fn=list,
        timeout=WORKER_TIMEOUT if workers else 0,
    )
    for batch in loader:
        yield from batch


class PictureFiles:
    """Picture files by their paths."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """List them."""
        self.paths = paths

    def __len__(self) -> int:
        """Count them."""
        return len(self.paths)

    def file(self, index: int) -> tuple[str, bytes]:
        """Return what findings call a file, and its bytes.

        Raises:
            OSError: it cannot be read.
        """
        return self.name(index), file_bytes(self.paths[index])

    def name(self, index: int) -> str:
        """Return what findings call a file."""
        return show_path(self.paths[index])


class _Facts(Dataset["ImageFacts | ShardError"]):
    """Errors of shards are handed over as values, for a loader's worker would bury them in a traceback."""

    def __init__(self, files: ImageFiles, decode: bool) -> None:
        self.files, self.decode = files, decode

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> "ImageFacts | ShardError":
        try:
            name, data = self.files.file(index)
        except ShardError as error:
            return error
        except OSError as error:
            return ImageFacts(self.files.name(index), fault="unreadable", reason=error.strerror or str(error))
        return image_facts(name, data, decode=self.decode)


def image_facts(name: str, data: bytes, *, decode: bool) -> ImageFacts:
    """Look at the bytes of one file."""
    known = ImageFacts(name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    if not any(data):
        reason = "holds zero bytes only" if data else "has no bytes"
        return replace(known, fault="empty-file", reason=reason)
    try:
        form, mode, width, height, frames = _header(data)
    except Image.DecompressionBombError:
        return replace(known, fault="too-large", reason="has far more pixels than may be decoded")
    except Exception:  # on damaged bytes Pillow raises nearly every type there is
        reason = f"is no picture of a known format, or its header is damaged; it begins with {data[:16]!r}"
        return replace(known, fault="not-an-image", reason=reason)
    known = replace(known, form=form, mode=mode, width=width, height=height, frames=frames)
    if not decode:
        return known
    try:
        picture = read_image(data, name=name)
    except ImageError as error:
        reason = str(error).removeprefix(f"{name}: ")
        return replace(known, fault="too-large" if "pixels" in reason else "damaged", reason=reason)
    shown = hashlib.blake2b(picture.tobytes(), digest_size=16)
    shown.update(repr((picture.mode, picture.size)).encode())
    return replace(known, pixels_hash=shown.hexdigest())


def _header(data: bytes) -> tuple[str, str, int, int, int]:
    """Format, mode, width, height and number of frames."""
    with QUIET(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        found = image.format or "", image.mode, *image.size
        try:
            frames = getattr(image, "n_frames", 1)
        except Exception:  # damaged after the first frame; decoding will tell whether that matters
            frames = 1
        return *found, frames
