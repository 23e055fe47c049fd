"""Sixteen families of odd and broken pictures, made from seeds: what a loader meets in the wild."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

ERROR = None
Expected = np.ndarray | None | str  # pixels, an error, or "damaged": formats without checksums hide flipped bits
Case = tuple[bytes, Expected, float]  # bytes of a file, what to expect, largest mean difference of the pixels
LOSSLESS: list[tuple[str, dict]] = [
    ("PNG", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_deflate"}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {"lossless": True}),
    ("PPM", {}),
]


def scene(rng: random.Random, width: int = 0, height: int = 0) -> np.ndarray:
    """Smooth colours with one dark corner, so that turns show and lossy formats stay close."""
    width, height = width or rng.randint(20, 60), height or rng.randint(20, 60)
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / width, 255 * y / height, np.full_like(x, rng.randint(60, 200), dtype=float)], -1)
    pixels[: height // 3, : width // 2] /= 4
    return pixels.astype(np.uint8)


def encode(pixels: np.ndarray | Image.Image, form: str, **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def lossless(rng: random.Random, pixels: np.ndarray) -> tuple[str, bytes]:
    form, options = rng.choice(LOSSLESS)
    return form, encode(pixels, form, **options)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha.astype(float) / 255
    return colour * (alpha if colour.ndim == 2 else alpha[..., None]) + 255 * (
        1 - (alpha if colour.ndim == 2 else alpha[..., None])
    )


def png(width: int, height: int, body: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(body or bytes(1000))) + chunk(b"IEND", b"")


def icon_around(inner: bytes) -> bytes:
    """An icon whose directory says 16x16, whatever the PNG in it is."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def exif(orientation: int) -> bytes:
    values = Image.Exif()
    values[0x0112] = orientation
    return values.tobytes()


def cut(rng: random.Random) -> Case:
    pixels = scene(rng)
    _, data = rng.choice([lossless(rng, pixels), ("JPEG", encode(pixels, "JPEG")), ("GIF", encode(pixels, "GIF"))])
    return data[: rng.randrange(int(len(data) * 0.98))], ERROR, 0


def flipped_bits(rng: random.Random) -> Case:
    pixels = scene(rng)
    form, data = lossless(rng, pixels)
    bad = bytearray(data)
    bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
    return bytes(bad), (pixels if form == "PNG" else "damaged"), 0  # a PNG has checksums: all flips are found


def zero_bytes(rng: random.Random) -> Case:
    if rng.random() < 0.5:
        return bytes(rng.randrange(2000)), ERROR, 0
    data = bytearray(encode(scene(rng), "PNG"))
    start = rng.randrange(8, len(data) - 40)
    data[start : start + 30] = bytes(30)
    return bytes(data), ERROR, 0


def text(rng: random.Random) -> Case:
    return (
        rng.choice([b"<!DOCTYPE html><p>404", b"hello\n" * 99, b"{}", b"%PDF-1.7", b"MZ\x90", b"GIF", b" "]),
        ERROR,
        0,
    )


def bomb(rng: random.Random) -> Case:
    side = rng.choice([9_500, 13_400, 30_000, 65_535])
    big_jpeg = bytearray(encode(scene(rng), "JPEG"))
    start = big_jpeg.index(b"\xff\xc0") + 5
    big_jpeg[start : start + 4] = struct.pack(">HH", side, side)
    gif = b"GIF89a" + struct.pack("<HHBBB", side, side, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, side, side, 0)
    bmp = bytearray(encode(scene(rng), "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    webp = b"VP8L" + struct.pack("<I", 10) + b"\x2f" + struct.pack("<I", 16382 | 16382 << 14) + bytes(5)
    webp = b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp
    choices = [png(side, side), icon_around(png(side, side)), bytes(big_jpeg), gif + b"\x08\x00;", bytes(bmp), webp]
    return rng.choice(choices), ERROR, 0


def one_pixel(rng: random.Random) -> Case:
    pixels = scene(rng, 1, 1)
    return lossless(rng, pixels)[1], pixels, 0


def long_side(rng: random.Random) -> Case:
    pixels = scene(rng, *rng.choice([(30_000, 1), (1, 30_000), (30_000, 8)]))
    return encode(pixels, rng.choice(["PNG", "BMP", "TIFF"])), pixels, 0


def cmyk(rng: random.Random) -> Case:
    pixels = scene(rng)
    image = Image.fromarray(pixels).convert("CMYK")
    form, allowed = rng.choice([("JPEG", 12), ("TIFF", 1)])
    return encode(image, form), pixels, allowed


def sixteen_bits(rng: random.Random) -> Case:
    values = np.random.default_rng(rng.randrange(99)).integers(0, 65_536, (30, 40))
    grey = np.rint(values / 257)
    which = rng.randrange(4)
    if which == 0:
        return encode(values.astype(np.uint16), "PNG"), grey, 0
    if which == 1:
        return encode(values.astype(rng.choice(["<u2", ">u2"])), "TIFF"), grey, 0
    if which == 2:
        return encode(values.astype(np.int32), "TIFF"), grey, 0
    shares = values.astype(np.float32) / 65_535
    return encode(shares * rng.choice([1, 255, 65_535]), "TIFF"), shares * 255, 0.5


def transparent(rng: random.Random) -> Case:
    pixels, grey = scene(rng), scene(rng)[..., 0]
    alpha = np.random.default_rng(rng.randrange(99)).integers(0, 256, grey.shape).astype(np.uint8)
    which = rng.randrange(5)
    if which == 0:
        return encode(np.dstack([grey, alpha]), "PNG"), over_white(grey, alpha), 0.5
    if which == 1:
        form = rng.choice(["PNG", "TIFF"])
        colour = scene(rng, grey.shape[1], grey.shape[0])
        return encode(np.dstack([colour, alpha]), form), over_white(colour, alpha), 0.5
    if which == 2:
        return encode(grey, "PNG", transparency=int(grey[0, 0])), np.where(grey == grey[0, 0], 255, grey), 0
    if which == 3:
        gone = tuple(int(value) for value in pixels[-1, -1])
        same = (pixels == pixels[-1, -1]).all(-1, keepdims=True)
        return encode(pixels, "PNG", transparency=gone), np.where(same, 255, pixels), 0
    image = Image.fromarray(pixels).quantize(8)
    index = np.asarray(image)
    alphas = bytes(rng.randrange(256) for _ in range(8))
    colour = np.asarray(image.convert("RGB"))
    return encode(image, "PNG", transparency=alphas), over_white(colour, np.array(list(alphas))[index]), 0.5


def animated(rng: random.Random) -> Case:
    image = Image.fromarray(scene(rng)).quantize(64).convert("RGB")
    form, options = rng.choice([("GIF", {}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
    data = encode(image, form, save_all=True, append_images=[image.rotate(180), image.rotate(90)], **options)
    return data, np.asarray(image), 0


def turned(rng: random.Random) -> Case:
    stored, orientation = scene(rng), rng.randint(1, 8)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(stored),
    }[orientation]
    form = rng.choice(["PNG", "TIFF", "WEBP", "JPEG", "broken"])
    if form == "broken":
        return encode(stored, "PNG", exif=b"Exif\0\0II*\0garbage"), stored, 0
    options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form == "JPEG" else {}
    return encode(stored, form, exif=exif(orientation), **options), upright, 12 if form == "JPEG" else 0


def bad_profile(rng: random.Random) -> Case:
    pixels = scene(rng)
    form, options = rng.choice([("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
    return encode(pixels, form, icc_profile=b"garbage" * rng.randrange(1, 99), **options), pixels, 0


def progressive(rng: random.Random) -> Case:
    pixels = scene(rng)
    data = encode(pixels, "JPEG", progressive=True, quality=90)
    return (data, pixels, 12) if rng.random() < 0.5 else (data[: rng.randrange(len(data) - 2)], ERROR, 0)


def any_good(rng: random.Random) -> Case:
    pixels = scene(rng)
    return (lossless(rng, pixels)[1], pixels, 0) if rng.random() < 0.7 else (b"no picture", ERROR, 0)


_FUNCTIONS = (cut, flipped_bits, zero_bytes, text, bomb, one_pixel, long_side, cmyk, sixteen_bits, transparent)
FAMILIES: dict[str, Callable[[random.Random], Case]] = {
    **{function.__name__: function for function in (*_FUNCTIONS, animated, turned, bad_profile, progressive)},
    "wrong_extension": any_good,
    "odd_name": any_good,
}
ODD_NAMES = [
    "two\nlines.png",
    "-rf.png",
    "a b [c] {d}.png",
    "schöne 猫.png",
    "\udcff.png",
    "x" * 240 + ".png",
    "'\"`$(x).png",
]
