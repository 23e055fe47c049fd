"""Training augmentation of detection: picture, boxes and masks change size, are cropped and mirrored together."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from davit.data.transforms import resize_fast
from davit.preprocessing import Preprocessing, as_mode
from davit.structures import Instances

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DetectionAugmentation:
    """How a training picture is varied; by default as the official recipe does it for 1x and 3x alike.

    A picture is mirrored or not, then cropped or not. Without a crop it is resized to one of `short_sides`. With one
    it is resized to one of `crop_short_sides`, a random part is cut out, and that is resized to one of `short_sides`.
    Each resize keeps the aspect ratio and takes a smaller scale where the long side would pass `longest`.

    Attributes:
        flip: probability of a horizontal flip.
        short_sides: lengths of the short side, in pixels; each is as likely as another.
        longest: most pixels of the long side.
        crop_probability: probability that a part is cut out.
        crop_short_sides: lengths of the short side before the crop.
        crop_sides: least and most pixels of a crop's height, and of its width, drawn apart; no side is longer than the
            picture's.
        resize_crops: resize the part cut out; without it, it stays as it is.
    """

    flip: float = 0.5
    short_sides: tuple[int, ...] = tuple(range(480, 801, 32))
    longest: int = 1333
    crop_probability: float = 0.5
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    crop_sides: tuple[int, int] = (384, 600)
    resize_crops: bool = True

    def __post_init__(self) -> None:
        """Refuse probabilities and sizes that mean nothing."""
        for name in ("flip", "crop_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")
        for name in ("short_sides", "crop_short_sides"):
            sides = getattr(self, name)
            if not sides or min(sides) < 1 or max(sides) > self.longest:
                raise ValueError(f"{name} needs lengths from 1 to longest ({self.longest}), got {sides}")
        if len(self.crop_sides) != 2 or not 1 <= self.crop_sides[0] <= self.crop_sides[1]:
            raise ValueError(f"crop_sides must be positive, least first, got {self.crop_sides}")


@dataclass(frozen=True)
class _View:
    """A picture with its objects, on the way through the augmentation; boxes and masks are tv_tensors."""

    picture: "Image"
    boxes: "Tensor"
    labels: "Tensor"
    masks: "Tensor | None"


class DetectionTransform:
    """Turn a picture and its instances into a normalised tensor and instances, differently each time.

    It draws from torch's global generator. Boxes are those of the annotation, moved and clipped; like mmdet it does not
    fit them to the masks again. An object whose box a crop leaves without area is dropped.
    """

    def __init__(self, augmentation: DetectionAugmentation, preprocessing: Preprocessing) -> None:
        """Vary as `augmentation` says; of `preprocessing` only the filter and the normalisation count."""
        self.augmentation, self.preprocessing = augmentation, preprocessing

    def __call__(self, picture: "Image", instances: Instances) -> "tuple[Tensor, Instances]":
        """Return (channels, height, width), float32, and the instances in its pixels."""
        settings = self.augmentation
        view = _view(as_mode(picture, self.preprocessing.channels), instances)
        if _happens(settings.flip):
            view = _flipped(view)
        if _happens(settings.crop_probability):
            view = _cropped(self._resized(view, settings.crop_short_sides), settings.crop_sides)
            if settings.resize_crops:
                view = self._resized(view, settings.short_sides)
        else:
            view = self._resized(view, settings.short_sides)
        return self.preprocessing.tensor(view.picture), _instances(view)

    def _resized(self, view: _View, short_sides: tuple[int, ...]) -> _View:
        from torchvision.transforms.v2 import functional as v2

        picture = view.picture
        limits = (short_sides[_draw(0, len(short_sides) - 1)], self.augmentation.longest)
        size = replace(self.preprocessing, size=limits, fit="within").output_size(picture.height, picture.width)
        if size == (picture.height, picture.width):
            return view
        return _View(
            resize_fast(picture, replace(self.preprocessing, size=size, fit="squash")),
            v2.resize(view.boxes, list(size)),
            view.labels,
            None if view.masks is None else v2.resize(view.masks, list(size)),
        )


def _view(picture: "Image", instances: Instances) -> _View:
    from torchvision.tv_tensors import BoundingBoxes, Mask

    size = (picture.height, picture.width)
    boxes = BoundingBoxes(instances.boxes, format="XYXY", canvas_size=size)  # type: ignore[unexpected-keyword]
    masks = None if instances.masks is None else Mask(instances.masks.byte())  # resizes of bool would pass by float
    return _View(picture, boxes, instances.labels, masks)


def _flipped(view: _View) -> _View:
    from PIL.Image import Transpose
    from torchvision.transforms.v2 import functional as v2

    masks = None if view.masks is None else v2.horizontal_flip(view.masks)
    picture = view.picture.transpose(Transpose.FLIP_LEFT_RIGHT)
    return _View(picture, v2.horizontal_flip(view.boxes), view.labels, masks)


def _cropped(view: _View, sides: tuple[int, int]) -> _View:
    """Cut out a random part and drop what has no area in it."""
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as v2

    least, most = sides
    height, width = (_draw(min(side, least), min(side, most)) for side in (view.picture.height, view.picture.width))
    top, left = _draw(0, view.picture.height - height), _draw(0, view.picture.width - width)
    boxes = v2.crop(view.boxes, top, left, height, width)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return _View(
        view.picture.crop((left, top, left + width, top + height)),
        tv_tensors.wrap(boxes[kept], like=boxes),
        view.labels[kept],
        None if view.masks is None else v2.crop(tv_tensors.Mask(view.masks[kept]), top, left, height, width),
    )


def _instances(view: _View) -> Instances:
    """Plain tensors again, boxes inside the picture."""
    from torchvision.transforms.v2 import functional as v2

    boxes = v2.clamp_bounding_boxes(view.boxes).as_subclass(torch.Tensor)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    masks = None if view.masks is None else view.masks.as_subclass(torch.Tensor)[kept].bool()
    return Instances(boxes=boxes[kept], labels=view.labels[kept], masks=masks)


def _happens(probability: float) -> bool:
    return float(torch.rand(())) < probability


def _draw(least: int, most: int) -> int:
    """A whole number, both ends included."""
    return int(torch.randint(least, most + 1, ()))
