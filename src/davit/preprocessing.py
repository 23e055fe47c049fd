"""What an image goes through before a model: data that travels with weights, and its one implementation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image, Resampling
    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_MOST_RESIZED = 1 << 25  # pixels


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize, crop and normalise; a pure function of the image.

    Attributes:
        size: height and width of the result, in pixels; with `fit="within"` its short and long side at most.
        crop: with `fit="crop"`, side of the central crop over the side it is cut from; 0.9 for the published scores.
        fit: `crop` keeps the aspect ratio and cuts the centre, `squash` resizes to `size` whatever the ratio, `within`
            keeps ratio and all of the picture, so that results differ in size.
        interpolation: filter of the resize, always antialiased.
        mean: per-channel mean of pixels in 0-1; its length is the number of channels, 1 (grey) or 3 (RGB).
        std: per-channel deviation, likewise.
    """

    size: tuple[int, int]
    crop: float = 0.9
    fit: Literal["crop", "squash", "within"] = "crop"
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        """Refuse what cannot be applied."""
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size must be a positive height and width, got {self.size}")
        if not 0.0 < self.crop <= 1.0:
            raise ValueError(f"crop must lie in (0, 1], got {self.crop}")
        if self.fit not in ("crop", "squash", "within"):
            raise ValueError(f"fit must be 'crop', 'squash' or 'within', got {self.fit!r}")
        if self.fit == "within" and self.size[0] > self.size[1]:
            raise ValueError(f"with fit='within' size is a short and a long side, got {self.size}")
        if self.interpolation not in ("bicubic", "bilinear", "lanczos", "nearest"):
            raise ValueError(f"unknown interpolation {self.interpolation!r}")
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise ValueError(f"mean and std need one positive entry per channel, got {self.mean} and {self.std}")

    @staticmethod
    def imagenet(size: int, channels: int = 3, crop: float = 0.9) -> "Preprocessing":
        """The usual preprocessing of ImageNet models; other channel counts than 3 get the average mean and std."""
        if channels == 3:
            return Preprocessing(size=(size, size), crop=crop)
        mean, std = sum(IMAGENET_MEAN) / 3, sum(IMAGENET_STD) / 3
        return Preprocessing(size=(size, size), crop=crop, mean=(mean,) * channels, std=(std,) * channels)

    @property
    def channels(self) -> int:
        """Channels of the result."""
        return len(self.mean)

    @property
    def resampling(self) -> "Resampling":
        """Pillow's name of `interpolation`."""
        from PIL import Image

        return Image.Resampling[self.interpolation.upper()]

    def __call__(self, image: "Image") -> "Tensor":
        """Return (channels, height, width), float32.

        Args:
            image: a decoded picture of any size and mode.

        Raises:
            ValueError: the model takes neither 1 nor 3 channels, so pictures cannot be made into its input.
        """
        return self.tensor(self.resize(as_mode(image, self.channels)))

    def tensor(self, image: "Image", out: "NDArray[np.float32] | None" = None) -> "Tensor":
        """Turn an 8-bit picture of any size into (channels, height, width), float32, normalised.

        In memory the channels of a position stay side by side, as they come from the picture and as the first
        convolution wants them; so each step is one pass over rows.

        Args:
            image: the picture.
            out: where to write, (height, width, channels); by default into new memory.
        """
        import numpy as np
        import torch

        shape = (image.height, image.width, self.channels)
        rows = (np.empty(shape, np.float32) if out is None else out).reshape(image.height, -1)
        np.copyto(rows, np.asarray(as_mode(image, self.channels)).reshape(image.height, -1))
        rows /= np.float32(255)
        rows -= _row(self.mean, image.width)
        rows /= _row(self.std, image.width)
        return torch.from_numpy(rows).view(shape).permute(2, 0, 1)

    def resize(self, image: "Image") -> "Image":
        """Resize and crop to `size`."""
        height, width = self.size
        method = self.resampling
        if self.fit != "crop":
            height, width = self.output_size(image.height, image.width)
            return image if image.size == (width, height) else image.resize((width, height), method)
        target = self._resized(image.width, image.height)
        left, top = round((target[0] - width) / 2.0), round((target[1] - height) / 2.0)
        cut = (left, top, left + width, top + height)
        if target[0] * target[1] > _MOST_RESIZED:
            return _resize_part(image, target, cut, method)
        return (image if image.size == target else image.resize(target, method)).crop(cut)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result for a picture of that height and width; `within` rounds as mmcv does."""
        if self.fit != "within":
            return self.size
        short, long = sorted((height, width))
        scale = min(self.size[0] / short, self.size[1] / long)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def place(self, y: float, x: float, height: int, width: int) -> tuple[float, float]:
        """Where a point of a picture of that height and width lies in the result; outside where it was cropped off.

        Points are in pixels from the top left corner, whose centre is (0.5, 0.5).
        """
        if self.fit != "crop":
            rows, columns = self.output_size(height, width)
            return y / height * rows, x / width * columns
        columns, rows = self._resized(width, height)
        top, left = round((rows - self.size[0]) / 2.0), round((columns - self.size[1]) / 2.0)
        return y / height * rows - top, x / width * columns - left

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the resize and before the crop, as timm and torchvision round them."""
        short, long = sorted((width, height))
        if self.size[0] == self.size[1]:
            side = math.floor(self.size[0] / self.crop)
            other = int(side * long / short)
            return (side, other) if width <= height else (other, side)
        ratio = min(height / math.floor(self.size[0] / self.crop), width / math.floor(self.size[1] / self.crop))
        return round(width / ratio), round(height / ratio)


def _resize_part(
    image: "Image", target: tuple[int, int], cut: tuple[int, int, int, int], method: "Resampling"
) -> "Image":
    """Compute only the part that is kept; without this, a picture of 1x30,000 pixels takes gigabytes on its way."""
    across, down = image.width / target[0], image.height / target[1]
    box = (cut[0] * across, cut[1] * down, min(cut[2] * across, image.width), min(cut[3] * down, image.height))
    return image.resize((cut[2] - cut[0], cut[3] - cut[1]), method, box)


@lru_cache(maxsize=16)
def _row(values: tuple[float, ...], width: int) -> "NDArray[np.float32]":
    """A value for each channel of each position of a row; made once, for it takes as long as a pass over the image."""
    import numpy as np

    return np.tile(np.array(values, dtype=np.float32), width)


def per_channel(values: Sequence[float], like: "Tensor") -> "Tensor":
    """Shape (C, 1, 1), of the type and device of `like`."""
    return like.new_tensor(values).view(-1, 1, 1)


def as_mode(image: "Image", channels: int) -> "Image":
    """Convert to grey or RGB."""
    if channels not in (1, 3):
        raise ValueError(f"pictures give 1 or 3 channels, this model takes {channels}: give it ready tensors instead")
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)
