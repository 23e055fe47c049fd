"""Distortion of colours, as mmseg's PhotoMetricDistortion does it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class PhotometricDistortion:
    """How the colours of a training picture are varied, each step with a probability of a half.

    The order is brightness, contrast, saturation, hue; or, as often, contrast last.

    Attributes:
        brightness: most that is added or taken away, of 255.
        contrast: least and most that values are multiplied by.
        saturation: least and most that the saturation (of HSV) is multiplied by.
        hue: largest turn of the hue, in 180ths of the circle, as OpenCV counts it.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0

    def __post_init__(self) -> None:
        """Refuse ranges that mean nothing."""
        for name in ("contrast", "saturation"):
            least, most = getattr(self, name)
            if not 0 <= least <= most:
                raise ValueError(f"{name} must be a least and a most, not negative, got {least} and {most}")
        if self.brightness < 0 or self.hue < 0:
            raise ValueError(f"brightness and hue must not be negative, got {self.brightness} and {self.hue}")

    def draw(self) -> "Colours":
        """Draw one distortion from torch's global generator."""
        contrast_last = _happens()
        return Colours(
            brightness=_between(-self.brightness, self.brightness) if _happens() else 0.0,
            contrast=_between(*self.contrast) if _happens() else 1.0,
            saturation=_between(*self.saturation) if _happens() else 1.0,
            hue=_between(-self.hue, self.hue) / 180 if _happens() else 0.0,
            contrast_last=contrast_last,
        )


@dataclass(frozen=True, kw_only=True)
class Colours:
    """One distortion of colours.

    Values are clipped to 0-255 after each step, and rounded once, at the end: mmseg cuts their fractions off after
    each step, and its hues are whole 180ths, both of which darken or shift by a level or two without purpose.

    Attributes:
        brightness: added to the values.
        contrast: values are multiplied by it.
        saturation: the saturation of HSV is multiplied by it, up to 1.
        hue: turn of the hue, as a share of the circle.
        contrast_last: contrast comes after saturation and hue, not before.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    contrast_last: bool = False

    def apply(self, picture: Image.Image) -> Image.Image:
        """Return a picture of mode RGB or L; grey has neither saturation nor hue."""
        pixels = np.asarray(picture).astype(np.float32)
        if self.brightness:
            pixels = (pixels + np.float32(self.brightness)).clip(0, 255)
        if not self.contrast_last:
            pixels = self._contrasted(pixels)
        if pixels.ndim == 3:
            planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
            planes = _turned(_saturated(planes, self.saturation), self.hue)
            pixels = planes.transpose(1, 2, 0)
        if self.contrast_last:
            pixels = self._contrasted(pixels)
        return Image.fromarray(np.ascontiguousarray(np.rint(pixels).astype(np.uint8)))

    def _contrasted(self, pixels: "NDArray[np.float32]") -> "NDArray[np.float32]":
        return pixels if self.contrast == 1 else (pixels * np.float32(self.contrast)).clip(0, 255)


def _saturated(planes: "NDArray[np.float32]", factor: float) -> "NDArray[np.float32]":
    """Multiply the saturation of HSV: with hue and value kept, each channel's distance from the largest grows alike."""
    if factor == 1:
        return planes
    value = planes.max(0)
    chroma = value - planes.min(0)
    most = np.divide(value, chroma, out=np.full_like(value, np.inf), where=chroma > 0)  # where saturation becomes 1
    return value - (value - planes) * np.minimum(most, np.float32(factor))


def _turned(planes: "NDArray[np.float32]", share: float) -> "NDArray[np.float32]":
    """Turn the hue of HSV by a share of the circle, with saturation and value kept."""
    if share == 0:
        return planes
    red, green, blue = planes
    value = planes.max(0)
    chroma = value - planes.min(0)
    divisor = np.where(chroma > 0, chroma, np.float32(1))
    hue = np.where(  # in sixths of the circle
        value == red,
        (green - blue) / divisor,
        np.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue += np.float32(6 * share)
    turned = np.empty_like(planes)
    for plane, offset in zip(turned, (5, 3, 1), strict=True):
        place = (hue + np.float32(offset)) % 6
        plane[:] = value - chroma * np.minimum(place, 4 - place).clip(0, 1)
    return turned


def _happens() -> bool:
    return float(torch.rand(())) < 0.5


def _between(least: float, most: float) -> float:
    return least + (most - least) * float(torch.rand(()))
