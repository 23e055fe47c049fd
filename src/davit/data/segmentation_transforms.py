"""Training augmentation of segmentation: a picture and the classes of its pixels vary together."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from davit.data.photometric import PhotometricDistortion
from davit.preprocessing import Preprocessing, as_mode

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_IGNORED = 255
_TRIES = 10
Corner = tuple[int, int]  # top and left of a crop


@dataclass(frozen=True, kw_only=True)
class SegmentationAugmentation:
    """How a training picture is varied; by default as the official recipe does it for ADE20K.

    Attributes:
        scale: least and most factor of the size.
        short: short side at a factor of 1, in pixels.
        longest: most pixels of the long side at a factor of 1; the scale is smaller where it would pass them.
        crop: side of the square that is cut out at random; smaller pictures are padded to it.
        most_of_one_class: ten places are tried for a crop in which no class has this share or more of the pixels that
            count; 1 takes the first.
        flip: probability of a horizontal flip.
        distortion: how the colours are varied.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    short: int = 512
    longest: int = 2048
    crop: int = 512
    most_of_one_class: float = 0.75
    flip: float = 0.5
    distortion: PhotometricDistortion = field(default_factory=PhotometricDistortion)

    def __post_init__(self) -> None:
        """Refuse probabilities and sizes that mean nothing."""
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be positive, least first, got {self.scale}")
        if not 1 <= self.short <= self.longest or self.crop < 1:
            raise ValueError(
                f"short and crop must be positive and longest at least short, got {self.short}, {self.crop} and "
                f"{self.longest}"
            )
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is a probability, got {self.flip}")
        if not 0 < self.most_of_one_class <= 1:
            raise ValueError(f"most_of_one_class is a share, got {self.most_of_one_class}")


class SegmentationTransform:
    """Turn a picture and its classes into a normalised tensor and class indices, differently each time.

    It draws from torch's global generator. Each of the two is as large as the crop: beyond a smaller picture the tensor
    has zeros, which is the mean colour, and the classes are 255, which does not count.
    """

    def __init__(self, augmentation: SegmentationAugmentation, preprocessing: Preprocessing) -> None:
        """Vary as `augmentation` says; of `preprocessing` only the filter and the normalisation count."""
        self.augmentation, self.preprocessing = augmentation, preprocessing

    def __call__(self, picture: Image.Image, classes: "NDArray[np.uint8]") -> "tuple[Tensor, Tensor]":
        """Return (channels, crop, crop), float32, and (crop, crop) int64."""
        settings = self.augmentation
        picture = as_mode(picture, self.preprocessing.channels)
        height, width = self._size(picture)
        resized = np.asarray(Image.fromarray(classes).resize((width, height), Image.Resampling.NEAREST))
        corner = _corner(resized, settings.crop, settings.most_of_one_class)
        resized = _cut(resized, corner, settings.crop)
        picture = self._part(picture, (height, width), corner, resized.shape)
        if float(torch.rand(())) < settings.flip:
            picture, resized = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), resized[:, ::-1]
        pixels = self.preprocessing.tensor(settings.distortion.draw().apply(picture))
        return _padded(pixels, resized, settings.crop)

    def _size(self, picture: Image.Image) -> tuple[int, int]:
        """Height and width that a random factor gives."""
        settings = self.augmentation
        least, most = settings.scale
        factor = least + (most - least) * float(torch.rand(()))
        limits = (max(1, int(settings.short * factor)), max(1, int(settings.longest * factor)))
        return replace(self.preprocessing, size=limits, fit="within").output_size(picture.height, picture.width)

    def _part(self, picture: Image.Image, size: tuple[int, int], corner: Corner, part: tuple[int, ...]) -> Image.Image:
        """Compute that part of the resized picture alone: of a picture twice as large, a crop is a tenth."""
        down, across = picture.height / size[0], picture.width / size[1]
        (top, left), (height, width) = corner, part
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        limited = (*box[:2], min(box[2], picture.width), min(box[3], picture.height))  # rounding may pass the edge
        return picture.resize((width, height), self.preprocessing.resampling, limited)


def _corner(classes: "NDArray[np.uint8]", side: int, most: float) -> Corner:
    """Draw a crop in which no class has too much; after ten that have, take one more, whatever it holds."""
    for _ in range(_TRIES if most < 1 else 0):
        corner = _any_corner(classes, side)
        counts = np.bincount(_cut(classes, corner, side).ravel(), minlength=256)[:_IGNORED]
        if np.count_nonzero(counts) > 1 and counts.max() < most * counts.sum():
            return corner
    return _any_corner(classes, side)


def _any_corner(classes: "NDArray[np.uint8]", side: int) -> Corner:
    top, left = (int(torch.randint(max(length - side, 0) + 1, ())) for length in classes.shape)
    return top, left


def _cut(classes: "NDArray[np.uint8]", corner: Corner, side: int) -> "NDArray[np.uint8]":
    top, left = corner
    return classes[top : top + side, left : left + side]


def _padded(pixels: "Tensor", classes: "NDArray[np.uint8]", side: int) -> "tuple[Tensor, Tensor]":
    channels, height, width = pixels.shape
    labels = torch.from_numpy(classes.astype(np.int64))
    if (height, width) == (side, side):
        return pixels, labels
    image = torch.zeros(side, side, channels).permute(2, 0, 1)  # channels side by side, as they come
    image[:, :height, :width] = pixels
    target = torch.full((side, side), _IGNORED)
    target[:height, :width] = labels
    return image, target
