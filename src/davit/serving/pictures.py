"""Bytes from outside to pictures: limits first, then the same pixels as everywhere else."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from io import BytesIO

from PIL import Image

from davit.decoding import QUIET, ImageError, read_image
from davit.inference.results import Prepared
from davit.preprocessing import Preprocessing
from davit.serving.errors import ProblemError
from davit.serving.limits import Limits

FORMATS = ("JPEG", "PNG", "WEBP")
MOST_SCANS = 100  # of a JPEG; cameras and editors write up to about ten, and each costs a pass over all pixels

# The decoder of WebP works on several copies; with this share of the limit its memory stays below that of the others.
_WEBP_SHARE = 3 / 8
_READ_IMAGE_FACTOR = 2  # makes room for what `read_image` holds back for turned and converted pictures


class PixelBudget:
    """Lets only so many pixels be decoded at once, so that memory stays bounded; first come, first served."""

    def __init__(self, limit: int) -> None:
        """Nothing is being decoded."""
        self._limit = limit
        self._used = 0
        self._changed = threading.Condition()
        self._next = threading.Lock()

    @contextmanager
    def __call__(self, pixels: int) -> Generator[None]:
        """Wait until there is room for a picture."""
        with self._next, self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self._limit)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify()


class Decoder:
    """Decodes and prepares; for several threads at once."""

    def __init__(self, limits: Limits) -> None:
        """Hold pictures to these limits."""
        self._limits = limits
        self._budget = PixelBudget(limits.pixels)

    def read(self, data: bytes, name: str, wanted: Callable[[], bool] = lambda: True) -> Image.Image:
        """Decode the first frame.

        Args:
            data: the file.
            name: what errors call the picture.
            wanted: whether anyone still waits for it; asked when its turn has come.

        Raises:
            ProblemError: another format, damaged, too large or too slow; or nobody waits.
        """
        width, height = check_header(data, name, self._limits)
        with self._budget(width * height):
            if not wanted():
                raise ProblemError("deadline_exceeded", f"{name}: nobody waits for it any more")
            started = time.thread_time()
            try:
                picture = read_image(data, max_pixels=self._limits.pixels * _READ_IMAGE_FACTOR, name=name)
            except ImageError as error:
                raise ProblemError("image_damaged", f"{error}; save it anew from its source") from error
        spent = time.thread_time() - started  # of the processor: other work does not count
        if spent > self._limits.decode_seconds:
            raise ProblemError(
                "image_too_slow",
                f"{name}: took {spent:.1f} s to decode, over the limit of {self._limits.decode_seconds:g}; send it "
                "smaller, or not progressive",
            )
        return picture

    def prepare(
        self, data: bytes, name: str, preprocessing: Preprocessing, wanted: Callable[[], bool] = lambda: True
    ) -> Prepared:
        """Decode a picture and bring it to what a model takes; see `read`."""
        picture = self.read(data, name, wanted)
        return Prepared(pixels=preprocessing(picture), size=(picture.height, picture.width))


def check_header(data: bytes, name: str, limits: Limits) -> tuple[int, int]:
    """Width and height of a picture that may be decoded.

    Raises:
        ProblemError: another format, a damaged header, too many pixels, or a JPEG of absurdly many scans.
    """
    kind = _format(data)
    if kind is None:
        raise ProblemError(
            "unsupported_format" if data else "no_image",
            f"{name}: is {'no JPEG, PNG or WebP' if data else 'empty'}; send it as one of {', '.join(FORMATS)}",
        )
    limit = int(limits.pixels * (_WEBP_SHARE if kind == "WEBP" else 1))
    try:
        with QUIET(), Image.open(BytesIO(data), formats=(kind,)) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise ProblemError(
            "too_many_pixels", f"{name}: has far more pixels than the {limit:,} that a {kind} may have; send it smaller"
        ) from None
    except Exception as error:  # on damaged bytes Pillow raises nearly every type there is
        raise ProblemError(
            "image_damaged", f"{name}: the header of this {kind} is damaged or cut short; save it anew from its source"
        ) from error
    if width * height > limit:
        raise ProblemError(
            "too_many_pixels",
            f"{name}: has {width}x{height} pixels, over the {limit:,} that a {kind} may have; send it smaller",
        )
    if kind == "JPEG" and data.count(b"\xff\xda") > MOST_SCANS:
        raise ProblemError(
            "image_too_slow", f"{name}: a JPEG of over {MOST_SCANS} scans would take long to decode; save it anew"
        )
    return width, height


def _format(data: bytes) -> str | None:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None
