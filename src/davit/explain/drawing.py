"""Maps of numbers as pictures: heat over an image, matrices, sprites, contact sheets."""

import base64
import io
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from davit.preprocessing import Preprocessing, per_channel

# Steps of equal OKLCH lightness (0.16 to 0.96) from indigo over red to cream: equal steps of a value look equal.
HEAT = (
    "0c0726", "29004a", "480058", "6a005f", "8e005f", "b30058", "cf284a",
    "e84737", "fd6712", "ff9133", "ffb55b", "ffd588", "fff2c2",
)  # fmt: skip
CRISP = 64  # pictures of at most this side are enlarged without smoothing
COMPRESSION = 4  # of PNGs: higher levels take five times as long for one or two percent
JPEG_FROM = 96  # colour pictures from this side up may travel as JPEG


@cache
def palette(levels: int) -> np.ndarray:
    """The heat colours at `levels` equal steps, (levels, 3) uint8."""
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (0, 2, 4)] for colour in HEAT])
    steps, at = np.linspace(0, 1, levels), np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(steps, at, anchors[:, i]) for i in range(3)], 1).round().astype(np.uint8)


def picture(pixels: Tensor, preprocessing: Preprocessing | None) -> Image.Image:
    """Turn a normalised (C, H, W) back into the picture the model saw; without its mean and deviation, stretch it."""
    pixels = pixels.detach().float().cpu()
    if preprocessing is None:
        pixels = unit(pixels - pixels.min())
    else:
        pixels = pixels * per_channel(preprocessing.std, pixels) + per_channel(preprocessing.mean, pixels)
    if len(pixels) not in (1, 3):
        pixels = pixels.mean(0, keepdim=True)
    values = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)


def unit(values: Tensor) -> Tensor:
    """Divide by the largest magnitude, so that it becomes one; zeros stay zeros."""
    top = values.abs().max()
    return values / top if top > 0 else values


def stretched(values: Tensor) -> Tensor:
    """Values from the lowest to the highest as 0-1: for shares that are nearly even, whose differences matter."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else values - low


def heat(values: Tensor) -> Image.Image:
    """Draw a matrix of values in 0-1, one pixel each."""
    return Image.fromarray(palette(256)[_levels(values, 256)])


def sprite(values: Tensor, levels: int = 16, see_through: bool = False) -> Image.Image:
    """Draw a matrix of values in 0-1 with few colours, for a small file.

    Args:
        values: (H, W).
        levels: colours, at most 256.
        see_through: make low values transparent, to lie over a picture.
    """
    image = Image.fromarray(_levels(values, levels).astype(np.uint8), mode="P")
    image.putpalette(palette(levels).tobytes())
    if see_through:
        image.info["transparency"] = bytes(opacity(np.linspace(0, 1, levels)).round().astype(np.uint8))
    return image


def opacity(values: np.ndarray) -> np.ndarray:
    """Opacity, 0-255, of heat over a picture: nothing at 0, and strong early, since attention is often spread out."""
    return 215 * np.sqrt(values)


def overlay(image: Image.Image, values: Tensor, stride: int, smooth: bool = False, scale: int = 1) -> Image.Image:
    """Lay a map of values in 0-1 over the picture it was computed from.

    Args:
        image: the picture; it is dimmed, so that the heat stands out.
        values: (H, W); position (i, j) covers the pixels from (i, j) * stride, and what hangs over is cropped.
        stride: pixels of the picture per position.
        smooth: blend between positions instead of drawing each as a square.
        scale: enlarge the picture by this first.
    """
    size = (image.width * scale, image.height * scale)
    base = image.convert("RGB").resize(size, _enlarging(image)).point(lambda value: value * 0.55)
    covered = (values.shape[1] * stride * scale, values.shape[0] * stride * scale)
    method = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    grown = Image.fromarray(_levels(values, 256).astype(np.uint8)).resize(covered, method).crop((0, 0, *size))
    shares = np.asarray(grown)
    mask = Image.fromarray(opacity(shares / 255).round().astype(np.uint8))
    return Image.composite(Image.fromarray(palette(256)[shares]), base, mask)


def mark(image: Image.Image, box: tuple[int, int, int, int], colour: str = "white") -> Image.Image:
    """Outline a box (left, top, right, bottom) in pixels, inside it."""
    image = image.copy()
    left, top, right, bottom = box
    ImageDraw.Draw(image).rectangle(
        (left, top, right - 1, bottom - 1), outline=colour, width=max(1, image.width // 160)
    )
    return image


def enlarge(image: Image.Image, side: int) -> Image.Image:
    """Enlarge a small picture by the largest whole factor that keeps it within `side`: sharp, evenly sized pixels."""
    factor = max(1, side // max(image.size))
    return image.resize((image.width * factor, image.height * factor), _enlarging(image))


def contact_sheet(images: Sequence[Image.Image], columns: int, gap: int = 4, ground: str = "#808080") -> Image.Image:
    """Lay pictures out in rows of `columns`, each in a cell as large as the largest."""
    width, height = max(image.width for image in images), max(image.height for image in images)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), ground)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(image.convert("RGB"), (column * (width + gap), row * (height + gap)))
    return sheet


def fit(image: Image.Image, side: int) -> Image.Image:
    """Shrink to within `side`, if larger."""
    if max(image.size) <= side:
        return image
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def png_bytes(image: Image.Image) -> bytes:
    """Encode as PNG; a picture of up to 16 palette colours takes half a byte a pixel."""
    buffer = io.BytesIO()
    few = image.mode == "P" and len(image.getpalette() or ()) <= 16 * 3
    image.save(buffer, "PNG", compress_level=COMPRESSION, **({"bits": 4} if few else {}))
    return buffer.getvalue()


def data_uri(image: Image.Image) -> str:
    """Encode for an `src`: as PNG, or as JPEG where that is smaller, as it is for photographs."""
    kind, data = "png", png_bytes(image)
    if image.mode == "RGB" and max(image.size) >= JPEG_FROM:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=86, optimize=True)
        if buffer.tell() < len(data):
            kind, data = "jpeg", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _levels(values: Tensor, levels: int) -> np.ndarray:
    return (values.detach().float().cpu().clamp(0, 1) * (levels - 1)).round().long().numpy()


def _enlarging(image: Image.Image) -> Image.Resampling:
    return Image.Resampling.NEAREST if max(image.size) <= CRISP else Image.Resampling.BICUBIC
