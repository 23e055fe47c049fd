"""Read pictures as a viewer shows them: upright, over white, in 8 bits; or say in one sentence why not."""

import ctypes
import logging
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import IcoImagePlugin, Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError, _imaging
from PIL.ImageFile import ImageFile

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # JPEG includes MPO, the pairs of phones
_COMMON = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SUFFIXES = frozenset((*_COMMON, ".avif", ".gif", ".ico", ".jfif", ".jpe", ".mpo", ".pgm", ".ppm"))
MAX_PIXELS = 89_478_485  # Pillow's own limit

# Most bytes in memory at once per pixel of `max_pixels`: 512 MiB at the default. Decoders that work on several copies
# therefore get a lower limit of pixels. Measured with Pillow 13.
_BYTES_PER_LIMIT = 6
_DECODER_BYTES = {"WEBP": 16, "AVIF": 11}
_PICTURE_BYTES = 4
_STRIP_PIXELS = 1 << 18

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """A file that cannot be shown as a picture; the message names it and the reason."""


class _RefusalError(Exception):
    """Why a picture is refused, before the name of the file is known."""


def read_image(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS, name: str = "") -> Image.Image:
    """Decode the first frame into mode `L` (grey) or `RGB`.

    The picture is turned as its EXIF says, and laid over white where it is transparent: training on whatever colours
    hide under full transparency would show the model what no viewer shows. 16-bit grey keeps its range.
    TIFFs of 32-bit or floating-point numbers name no white: it is the smallest of 1 (floats only), 255 and 65,535 that
    holds all values, or else the range is stretched. Colour profiles are ignored, as in torchvision and timm.

    Args:
        source: a path, or the bytes of a file.
        max_pixels: refuse larger pictures from their header, before decoding. Less where decoding takes several copies
            (WebP and AVIF; pictures to be turned or converted), so that memory stays under six bytes per pixel of it.
        name: what errors call the picture; by default its path.

    Raises:
        ImageError: missing, not a picture, damaged, cut short or too large; never another type.
    """
    name = name or ("image" if isinstance(source, bytes) else show_path(source))
    try:
        with QUIET(), _open(source) as stream, Image.open(stream, formats=FORMATS) as image:
            return _decode(image, stream, max_pixels)
    except Exception as error:  # on damaged bytes Pillow raises nearly every type there is
        raise ImageError(f"{name}: {_explain(error)}") from error


def as_shown(image: Image.Image) -> Image.Image:
    """Turn upright, lay over white and bring to 8 bits: for pictures you opened yourself, as `read_image` does it."""
    image.load()
    turn = _TURNS.get(_orientation(image))
    picture = _eight_bit(image)
    if turn is None:
        return picture
    picture = picture.transpose(turn)
    picture.info = {}  # its EXIF would have it turned again
    return picture


def show_path(path: str | Path) -> str:
    """Return a path for one line of text: names with line breaks or undecodable bytes are quoted and escaped."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def _open(source: str | Path | bytes) -> IO[bytes]:
    if isinstance(source, bytes):
        if not source:
            raise _RefusalError("no bytes")
        return BytesIO(source)
    path = Path(source)
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise _RefusalError("is a folder, not an image")
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
        raise _RefusalError("is not a regular file")
    if status.st_size == 0:
        raise _RefusalError("is empty")
    return path.open("rb")


def _decode(image: ImageFile, stream: IO[bytes], max_pixels: int) -> Image.Image:
    _check_size(image, stream, max_pixels)
    if image.format == "PNG":
        _check_sums(stream)
    return as_shown(image)


def _check_size(image: ImageFile, stream: IO[bytes], max_pixels: int) -> None:
    width, height = _true_size(image, stream)
    turned = _orientation(image) in _TURNS
    converted = image.mode not in ("1", "L", "P", "RGB") or image.has_transparency_data
    cost = max(_DECODER_BYTES.get(image.format or "", 0), _PICTURE_BYTES * (1 + turned + converted))
    limit = min(max_pixels, max_pixels * _BYTES_PER_LIMIT // cost)
    if width * height > limit:
        raise _RefusalError(
            f"has {width}x{height} pixels, over the limit of {limit:,}; raise max_pixels if you trust it"
        )
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        ends = [tile.extents[3] for tile in image.tile if tile.extents]
        if ends and max(ends) < image.tag_v2[TiffImagePlugin.IMAGELENGTH]:  # Pillow would leave these rows black
            raise _RefusalError("is damaged or cut short (rows are missing)")


def _true_size(image: ImageFile, stream: IO[bytes]) -> tuple[int, int]:
    """Width and height of what will be decoded: the directory of an icon may hide a far larger PNG."""
    if isinstance(image, IcoImagePlugin.IcoImageFile):
        stream.seek(image.ico.entry[image.ico.getentryindex(image.size)].offset)
        head = stream.read(24)
        if head.startswith(b"\x89PNG"):
            width, height = struct.unpack(">II", head[16:24])
            return width, height
    return image.size


def _check_sums(stream: IO[bytes]) -> None:
    """Check every checksum of a PNG: Pillow's decoder skips those of the pixels."""
    stream.seek(0)
    PngImagePlugin.PngImageFile(stream).verify()  # `load` seeks by itself


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return value if isinstance(value, int) else 1
    except Exception:  # of any type, as in `read_image`; the picture is good even where its EXIF is not
        return 1


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        shades = _sixteen_bit_shades(image)
        return _by_strips(image, "L", lambda strip: Image.fromarray(shades[np.asarray(strip)]))
    if image.mode in ("I", "F"):
        black, white = _range(image)
        return _by_strips(image, "L", lambda strip: _scale(strip, black, white))
    if image.has_transparency_data:
        return _by_strips(image, "L" if image.mode in ("1", "L", "LA", "La") else "RGB", _over_white)
    if image.mode in ("L", "RGB"):
        return image
    mode = "L" if image.mode == "1" else "RGB"
    return _by_strips(image, mode, lambda strip: strip.convert(mode))


def _by_strips(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    result = Image.new(mode, image.size)
    for top, strip in _strips(image):
        result.paste(convert(strip), (0, top))
    return result


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Some rows at a time, so that no third copy of a large picture is ever in memory."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _over_white(strip: Image.Image) -> Image.Image:
    grey = strip.mode in ("1", "L", "LA", "La")
    layer = strip.convert("LA" if grey else "RGBA")
    canvas = Image.new("L" if grey else "RGB", strip.size, "white")
    canvas.paste(layer, mask=layer)
    return canvas


def _sixteen_bit_shades(image: Image.Image) -> np.ndarray[Any, Any]:
    """The grey for each of the 65,536 values."""
    bits = 16
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # 12-bit cameras and scanners store 12 bits in 16
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    values = np.arange(1 << 16, dtype=np.float64)
    shades = np.rint(values * (255 / ((1 << bits) - 1))).clip(0, 255).astype(np.uint8)
    if "transparency" in image.info:
        shades[image.info["transparency"]] = 255
    return shades


def _range(image: Image.Image) -> tuple[float, float]:
    """The values that stand for black and white in 32-bit numbers."""
    low, high = np.inf, -np.inf
    for _, strip in _strips(image):
        values = np.asarray(strip)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:
        raise _RefusalError("holds no finite number")
    whites = (1, 255, 65_535) if image.mode == "F" else (255, 65_535)
    fitting = [white for white in whites if high <= white]
    return (0.0, fitting[0]) if low >= 0 and fitting else (low, high)


def _scale(strip: Image.Image, black: float, white: float) -> Image.Image:
    """Map `black` to 0 and `white` to 255; what is no number is black."""
    with np.errstate(all="ignore"):
        shades = np.asarray(strip).astype(np.float64)
        shades -= black
        shades *= 255 / max(white - black, 1e-30)
        np.nan_to_num(shades, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
        return Image.fromarray(np.rint(shades.clip(0, 255, out=shades), out=shades).astype(np.uint8))


def _explain(error: Exception) -> str:
    if isinstance(error, _RefusalError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return f"is no picture, or none of a known format ({', '.join(FORMATS)}), or its header is damaged"
    if isinstance(error, Image.DecompressionBombError):
        return "has far more pixels than may be decoded"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror})"
    return f"is damaged or cut short ({' '.join(str(error).split())[:200] or type(error).__name__})"


class _Quiet:
    """Hides what Pillow says of odd metadata, from the first thread that decodes to the last.

    `catch_warnings` changes the whole process: two threads at once would restore the filters in the wrong order.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._hidden = ExitStack()

    @contextmanager
    def __call__(self) -> Generator[None]:
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                self._hide()
        try:
            yield
        finally:
            with self._lock:
                self._threads -= 1
                if self._threads == 0:
                    self._hidden.close()

    def _hide(self) -> None:
        self._hidden.enter_context(_unwarned())
        silent = logging.NullHandler()  # without any handler, Python prints errors to stderr
        logging.getLogger("PIL").addHandler(silent)
        self._hidden.callback(logging.getLogger("PIL").removeHandler, silent)
        self._hidden.callback(_libtiff_handler(), _libtiff_handler()(None))


@contextmanager
def _unwarned() -> Generator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


QUIET: Callable[[], AbstractContextManager[None]] = _Quiet()


@cache
def _libtiff_handler() -> Callable[[int | None], int | None]:
    """What sets the function that libtiff calls with errors, by default to stderr, and returns the one before."""
    pointer = ctypes.c_void_p
    try:
        return ctypes.CFUNCTYPE(pointer, pointer)(("TIFFSetErrorHandler", ctypes.CDLL(_imaging.__file__)))
    except (OSError, AttributeError):  # linked in some other way: only its lines on stderr remain
        return lambda _: None
