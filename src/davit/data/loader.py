"""Batches of a training run: which samples a step sees, and with which randomness, depends on nothing but the step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from davit.data.transforms import TrainTransform
from davit.decoding import ImageError
from davit.preprocessing import Preprocessing
from davit.seeding import seed_everything
from davit.structures import Batch

if TYPE_CHECKING:
    from PIL.Image import Image

Key = tuple[int, int]  # (epoch, index)
REPLACEMENTS = 10
WORKER_TIMEOUT = 120  # seconds; by default a hung worker is waited for without end
Transform = Callable[["Image"], torch.Tensor]


class ClassifiedImages(Protocol):
    """A dataset of pictures with class indices."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        ...

    def __len__(self) -> int:
        """Count the samples."""
        ...

    def __getitem__(self, index: int) -> tuple["Image", int]:
        """Return a picture and its class."""
        ...


@dataclass(frozen=True, kw_only=True)
class Share:
    """The part of each batch that one process computes.

    The rows of a batch are dealt out in order: first by process, then by micro-batch. What a row holds, and what is
    drawn for it, does not depend on how they are dealt.

    Attributes:
        rank: number of the process.
        size: how many processes there are.
        accumulate: micro-batches that a process computes one after the other.
    """

    rank: int = 0
    size: int = 1
    accumulate: int = 1

    def rows(self, batch_size: int) -> list[range]:
        """Rows of each micro-batch.

        Raises:
            ValueError: the batch cannot be dealt out evenly.
        """
        parts = self.size * self.accumulate
        if batch_size % parts:
            raise ValueError(
                f"a batch of {batch_size} cannot be shared by {self.size} processes x {self.accumulate} micro-batches: "
                f"make data.batch_size a multiple of {parts}"
            )
        length = batch_size // parts
        first = self.rank * self.accumulate
        return [range(part * length, (part + 1) * length) for part in range(first, first + self.accumulate)]


class StepSampler(Sampler[list[Key]]):
    """The keys of each step's samples.

    All epochs form one stream: position p is in epoch p // N, at p % N of a permutation seeded by (seed, epoch). Step
    s takes the positions from s * batch_size on. So each sample comes once an epoch, every batch is full, a batch may
    span two epochs, and the position of a run is one integer.
    """

    def __init__(self, samples: int, batch_size: int, seed: int, steps: range, share: Share | None = None) -> None:
        """Yield the micro-batches of a share, of the steps given."""
        self.samples, self.batch_size, self.seed, self.steps = samples, batch_size, seed, steps
        self.rows = (share or Share()).rows(batch_size)

    def __len__(self) -> int:
        """Count the micro-batches."""
        return len(self.steps) * len(self.rows)

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield (epoch, index) pairs, a list per micro-batch."""
        order = lru_cache(maxsize=2)(self._order)
        for step in self.steps:
            for rows in self.rows:
                positions = (divmod(step * self.batch_size + row, self.samples) for row in rows)
                yield [(epoch, int(order(epoch)[position])) for epoch, position in positions]

    def _order(self, epoch: int) -> torch.Tensor:
        return torch.randperm(self.samples, generator=torch.Generator().manual_seed((self.seed << 20) + epoch))


@dataclass(frozen=True)
class Sample:
    """One image ready for a batch."""

    pixels: torch.Tensor
    target: int
    index: int
    faults: tuple[str, ...] = ()


class TrainSamples(Dataset[Sample]):
    """Augmented samples; each draws its randomness from (seed, epoch, index) alone."""

    def __init__(self, images: ClassifiedImages, transform: Transform, seed: int) -> None:
        """Augment `images` by `transform`."""
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, index: Key) -> Sample:
        """Return the sample at an (epoch, index) pair.

        A file that cannot be decoded is replaced by one that follows from the same pair, so in every rerun by the same.

        Raises:
            ImageError: its replacements cannot be decoded either.
        """
        return self._sample(index, self.transform)

    def __getitems__(self, indices: list[Key]) -> Batch:
        """Return a batch; our own transform writes each image straight to its place in it."""
        transform = self.transform
        if not isinstance(transform, TrainTransform):
            return collate([self[index] for index in indices])
        images = np.empty((len(indices), *transform.preprocessing.size, transform.preprocessing.channels), np.float32)
        places = zip(indices, images, strict=True)
        samples = [self._sample(index, partial(transform, out=place)) for index, place in places]
        return _gather(samples, torch.from_numpy(images).permute(0, 3, 1, 2))

    def _sample(self, index: Key, transform: Transform) -> Sample:
        epoch, chosen = index
        faults: list[str] = []
        while True:
            try:
                image, target = self.images[chosen]
            except ImageError as error:
                faults.append(str(error))
                if len(faults) > REPLACEMENTS:
                    raise
                seed_everything(self.seed, epoch, index[1], len(faults))
                chosen = int(torch.randint(len(self.images), ()))
                continue
            seed_everything(self.seed, epoch, chosen)
            return Sample(transform(image), target, chosen, tuple(faults))


@dataclass(frozen=True)
class Part:
    """Some of the images of a dataset."""

    images: ClassifiedImages
    indices: list[int]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.images.classes

    def __len__(self) -> int:
        """Count the images."""
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple["Image", int]:
        """Return a picture and its class."""
        return self.images[self.indices[index]]


def collate(samples: list[Sample]) -> Batch:
    """Stack samples; the channels of a position stay side by side in memory."""
    return _gather(samples, torch.stack([sample.pixels.permute(1, 2, 0) for sample in samples]).permute(0, 3, 1, 2))


def _gather(samples: list[Sample], images: torch.Tensor) -> Batch:
    return Batch(
        images=images,
        targets=torch.tensor([sample.target for sample in samples]),
        ids=tuple(sample.index for sample in samples),
        faults=tuple(fault for sample in samples for fault in sample.faults),
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def train_loader(samples: TrainSamples, sampler: StepSampler, workers: int) -> "DataLoader[Batch]":
    """Load the steps of `sampler` in `workers` processes; the batches do not depend on how many."""
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        timeout=WORKER_TIMEOUT if workers else 0,
    )
    return loader


def evaluation_batches(
    images: ClassifiedImages, preprocessing: Preprocessing, *, batch_size: int, workers: int
) -> Iterator[Batch]:
    """Yield every image once, in order, decoded in `workers` processes (0: in this one).

    Raises:
        ImageError: a file cannot be decoded. Scoring goes on without it only if you take it away.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    loader = DataLoader(
        _EvaluationSamples(images, preprocessing),
        batch_size=batch_size,
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

    def __init__(self, images: ClassifiedImages, preprocessing: Preprocessing) -> None:
        self.images, self.preprocessing = images, preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> "Sample | ImageError":
        try:
            image, label = self.images[index]
        except ImageError as error:
            return error
        return Sample(self.preprocessing(image), label, index)


def _collate_or_fail(samples: "list[Sample | ImageError]") -> Batch | ImageError:
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, ImageError):
            return sample
        good.append(sample)
    return collate(good)
