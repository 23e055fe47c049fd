"""Our preprocessing as an image processor of transformers: the same pixels, to the bit."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import (
    ChannelDimension,
    SizeDict,
    infer_channel_dimension_format,
    make_flat_list_of_images,
)
from transformers.processing_utils import ImagesKwargs

from davit.decoding import as_shown, read_image
from davit.naming import unknown_name
from davit.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from davit.weights.convert.huggingface import PROCESSOR, from_processor, to_processor
from davit.weights.huggingface_folder import write_code

_STEPS = ("do_resize", "do_rescale", "do_normalize")
_SETTINGS = ("size", "crop", "fit", "resample", "image_mean", "image_std")
_ABOUT_FILE = ("image_processor_type", "auto_map", "processor_class", "feature_extractor_type")


class _Settings(ImagesKwargs, total=False):
    """What `from_pretrained` and a call may change."""

    crop: float
    fit: str


class DaViTImageProcessor(BaseImageProcessor):
    """Resize, crop and normalise pictures as `davit.preprocessing.Preprocessing` does.

    Attributes:
        size: height and width of the result, `{"height": ..., "width": ...}`.
        crop: side of the central crop over the side it is cut from.
        fit: `crop`, `squash` or `within`, as in `Preprocessing`.
        resample: Pillow's number of the filter.
        image_mean: per-channel mean of pixels in 0-1; one entry makes pictures grey.
        image_std: per-channel deviation.
        do_resize: resize and crop; without it pictures keep their size.
        do_rescale: arrays of floating point numbers lie in 0-255; without it, in 0-1.
        do_normalize: subtract the mean and divide by the deviation; without it results lie in 0-1.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 (as transformers has it)
    valid_kwargs = _Settings

    def __init__(self, **settings: Any) -> None:
        """Take the attributes of the class by name; ImageNet's values at 224 are the defaults.

        Raises:
            ValueError: unknown settings, or values that make no preprocessing.
        """
        if (kind := settings.get("image_processor_type", PROCESSOR)) != PROCESSOR:
            raise ValueError(f"these are the settings of a {kind}, not of a {PROCESSOR}")
        settings = {name: value for name, value in settings.items() if name not in _ABOUT_FILE}
        usual = to_processor(Preprocessing(size=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD))
        values = _changed({**usual, **dict.fromkeys(_STEPS, True)}, settings)
        super().__init__(**{name: values[name] for name in (*_SETTINGS, *_STEPS)})
        self.size = SizeDict(**values["size"])  # transformers' own are asked for .height and for ["height"]

    @classmethod
    def from_davit(cls, preprocessing: Preprocessing) -> "DaViTImageProcessor":
        """Make the processor of a preprocessing."""
        return cls(**to_processor(preprocessing))

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that the attributes describe."""
        return from_processor(_changed(self.__dict__, {}))

    def preprocess(self, images: Any, *, return_tensors: Any = None, **changes: Any) -> BatchFeature:
        """Make pictures into `pixel_values`, (B, channels, height, width), float32.

        Args:
            images: one or several: PIL images, paths, URLs, or arrays (NumPy or torch) of 8 bits or floating point
                numbers, (height, width), (height, width, channels) or (channels, height, width); or a batch of such
                arrays. Four channels are red, green, blue and opacity; transparent pixels become white.
            return_tensors: "pt", "np", or None for a list.
            **changes: any attribute of the class, for this call; `input_data_format`, "channels_first" or
                "channels_last", where the shape of arrays leaves it open; `device`, where results go.

        Raises:
            ValueError: what is no picture, or pictures of different sizes that cannot be one tensor.
        """
        layout, device = changes.pop("input_data_format", None), changes.pop("device", None)
        values = _changed(self.__dict__, changes)
        preprocessing = from_processor(values)
        pixels = [
            _pixels(_picture(image, values["do_rescale"], layout), preprocessing, values)
            for image in self._prepare_images_structure(images)
        ]
        if return_tensors is None:
            return BatchFeature(data={"pixel_values": [image.to(device) for image in pixels]})
        sizes = sorted({tuple(image.shape[1:]) for image in pixels})
        if len(sizes) > 1:
            raise ValueError(f"pictures of sizes {sizes} cannot be one tensor: give them one by one, or resize them")
        batch = torch.stack(pixels).to(device)
        return BatchFeature(data={"pixel_values": batch}, tensor_type=return_tensors)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open paths as davit does, and URLs as transformers does."""
        if isinstance(image_url_or_urls, str | Path) and not str(image_url_or_urls).startswith(("http://", "https://")):
            return read_image(image_url_or_urls)
        return super().fetch_images(image_url_or_urls)

    def to_dict(self) -> dict[str, Any]:
        """The values of `preprocessor_config.json`."""
        steps = {name: False for name in _STEPS if not getattr(self, name)}
        return {**to_processor(self.preprocessing), **steps}

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoImageProcessor") -> None:
        """Do nothing: every saved folder says where its classes are."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Save as transformers does, with the file that loads davit where `trust_remote_code` is given."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_code(folder)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        fetched = self.fetch_images(images)
        if isinstance(fetched, np.ndarray | Tensor) and fetched.ndim == 2:
            return [fetched]
        flat: Any = make_flat_list_of_images(fetched, expected_ndims=expected_ndims)
        return list(flat)


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with some changed, checked."""
    for name in changes:
        if name not in (*_SETTINGS, *_STEPS):
            raise unknown_name(f"setting of {PROCESSOR}", name, (*_SETTINGS, *_STEPS))
    merged = {**values, **{name: value for name, value in changes.items() if value is not None}}
    merged["size"] = dict(merged["size"]) if isinstance(merged["size"], SizeDict) else merged["size"]
    return {**merged, **to_processor(from_processor(merged))}


def _pixels(picture: Image.Image, preprocessing: Preprocessing, values: Mapping[str, Any]) -> Tensor:
    if not values["do_normalize"]:
        count = preprocessing.channels
        plain = {"image_mean": [0.0] * count, "image_std": [1.0] * count}
        preprocessing = from_processor({**values, **plain})
    return preprocessing(picture) if values["do_resize"] else preprocessing.tensor(picture)


def _picture(image: Any, do_rescale: bool, layout: str | None) -> Image.Image:
    """Whatever stands for a picture as 8-bit grey or RGB."""
    if isinstance(image, Image.Image):
        _check_scale(do_rescale)
        return as_shown(image)
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.ndim == 3:
        layout = layout or infer_channel_dimension_format(array, num_channels=(1, 3, 4))
        array = np.moveaxis(array, 0, -1) if ChannelDimension(layout) == ChannelDimension.FIRST else array
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)) or 0 in array.shape:
        raise ValueError(f"a picture has 1, 3 or 4 channels and a height and width, got an array {array.shape}")
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    return as_shown(Image.fromarray(np.ascontiguousarray(_eight_bits(array, do_rescale))))


def _eight_bits(array: NDArray[Any], do_rescale: bool) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        _check_scale(do_rescale)
        return array
    if array.dtype.kind not in "fiu":
        raise ValueError(f"a picture holds 8-bit or floating point numbers, got {array.dtype}")
    low, high = float(array.min()), float(array.max())
    largest = 255 if do_rescale else 1
    if not 0 <= low <= high <= largest:  # NaN compares false
        other = ": with do_rescale=True they lie in 0 to 255" if not do_rescale else ""
        raise ValueError(f"numbers of a picture lie in 0 to {largest}, got {low:g} to {high:g}{other}")
    if do_rescale and array.dtype.kind == "f" and 0 < high <= 1:
        raise ValueError(f"these numbers lie in {low:g} to {high:g}, not 0 to 255: pass do_rescale=False")
    return np.rint(array if do_rescale else array * 255.0).astype(np.uint8)


def _check_scale(do_rescale: bool) -> None:
    if not do_rescale:
        raise ValueError("do_rescale=False is for arrays of numbers in 0 to 1; 8-bit pictures are always rescaled")
