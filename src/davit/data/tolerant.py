"""Scoring without the images that cannot be decoded: only where that is asked for, with their names."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from davit.data.loader import ClassifiedImages
from davit.decoding import ImageError
from davit.structures import Batch

if TYPE_CHECKING:
    from PIL.Image import Image

_FAULT = -1  # the class of what could not be decoded


class Tolerant:
    """Images with a blank one, of no class, in the place of each that cannot be decoded."""

    def __init__(self, images: ClassifiedImages) -> None:
        """Stand before `images`."""
        self.images = images

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.images.classes

    def __len__(self) -> int:
        """Count the images, blank ones too."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple["Image", int]:
        """Return a picture and its class."""
        from PIL import Image

        try:
            return self.images[index]
        except ImageError:
            return Image.new("L", (8, 8)), _FAULT

    def without_faults(self, batches: Iterator[Batch], left_out: list[str]) -> Iterator[Batch]:
        """Take the blank images out of batches and append to `left_out` why they were."""
        for batch in batches:
            good = batch.targets != _FAULT
            for index in torch.tensor(batch.ids)[~good].tolist():
                left_out.append(self._fault(index))
            if good.any():
                yield Batch(images=batch.images[good], targets=batch.targets[good])

    def _fault(self, index: int) -> str:
        """Ask again, in this process: the one that decoded it handed over only pixels."""
        try:
            self.images[index]
        except ImageError as error:
            return str(error)
        return f"image {index} could not be decoded at first"
