"""Batches of an evaluation: every image once, none replaced by another."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from davit.data.loader import WORKER_TIMEOUT, AnnotatedImages, Sample, collate
from davit.decoding import ImageError
from davit.preprocessing import Preprocessing
from davit.structures import Batch, Picture

if TYPE_CHECKING:
    from PIL.Image import Image


class SizedImages(Protocol):
    """A dataset of pictures whose sizes are known without decoding them."""

    def __len__(self) -> int:
        """Count the pictures."""
        ...

    def __getitem__(self, index: int) -> tuple["Image", Any]:
        """Return a picture and its annotation."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture."""
        ...


def evaluation_batches(
    images: AnnotatedImages, preprocessing: Preprocessing, *, batch_size: int, workers: int
) -> Iterator[Batch]:
    """Yield every image once, in order, decoded in `workers` processes (0: in this one).

    Raises:
        ImageError: a file cannot be decoded. Scoring goes on without it only if you take it away.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    order = [list(range(start, min(start + batch_size, len(images)))) for start in range(0, len(images), batch_size)]
    yield from _load(_EvaluationSamples(images, preprocessing), order, workers)


def picture_batches(
    images: SizedImages, preprocessing: Preprocessing, *, order: list[list[int]], workers: int
) -> Iterator[Batch]:
    """Yield images with the `Picture` behind each, in the order given.

    Args:
        images: of a dense task: detection, segmentation.
        preprocessing: keeps the whole picture.
        order: places of the images of each batch, which become equal in size: see `equal_sizes`.
        workers: processes that decode; 0 does it in this one.

    Raises:
        ImageError: a file cannot be decoded.
    """
    yield from _load(_PictureSamples(images, preprocessing), order, workers)


def equal_sizes(
    images: SizedImages, preprocessing: Preprocessing, indices: Iterable[int], batch_size: int
) -> list[list[int]]:
    """Deal some images out to batches in which all have one size, so that none is padded for another's sake."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        groups.setdefault(preprocessing.output_size(*images.size(index)), []).append(index)
    return [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]


def _load(samples: "Dataset[Sample | ImageError]", order: list[list[int]], workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        samples,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate_or_fail,
        timeout=WORKER_TIMEOUT if workers else 0,
    )
    for batch in loader:
        if isinstance(batch, ImageError):
            raise batch
        yield batch


class _EvaluationSamples(Dataset["Sample | ImageError"]):
    """Preprocessed images; errors are handed over as values, for a loader's worker would bury them in a traceback."""

    def __init__(self, images: AnnotatedImages, preprocessing: Preprocessing) -> None:
        self.images, self.preprocessing = images, preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> "Sample | ImageError":
        try:
            image, label = self.images[index]
        except ImageError as error:
            return error
        return Sample(self.preprocessing(image), label, index)


class _PictureSamples(Dataset["Sample | ImageError"]):
    """Preprocessed images with the picture behind each; errors are handed over as values."""

    def __init__(self, images: SizedImages, preprocessing: Preprocessing) -> None:
        self.images, self.preprocessing = images, preprocessing

    def __getitem__(self, index: int) -> "Sample | ImageError":
        try:
            image, annotation = self.images[index]
        except ImageError as error:
            return error
        pixels = self.preprocessing(image)
        picture = Picture(
            index=index,
            size=(image.height, image.width),
            resized=(pixels.shape[1], pixels.shape[2]),
            classes=torch.from_numpy(annotation) if isinstance(annotation, np.ndarray) else None,
        )
        return Sample(pixels, picture, index)


def _collate_or_fail(samples: "list[Sample | ImageError]") -> Batch | ImageError:
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, ImageError):
            return sample
        good.append(sample)
    return collate(good)
