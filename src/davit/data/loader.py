"""Batches of a training run: which samples a step sees, and with which randomness, depends on nothing but the step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from davit.data.permutation import Permutation
from davit.data.transforms import TrainTransform
from davit.decoding import ImageError
from davit.seeding import seed_everything
from davit.structures import Batch, Pair

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

Key = tuple[int, int]  # (epoch, index)
REPLACEMENTS = 10
LARGEST_SHUFFLED = 1 << 26  # samples whose order is held in memory, half a gigabyte
WORKER_TIMEOUT = 120  # seconds; by default a hung worker is waited for without end
Transform = Callable[["Image"], torch.Tensor]
Vary = Callable[["Image", Any], tuple[torch.Tensor, Any]]


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


class AnnotatedImages(Protocol):
    """A dataset of pictures, each with what is known about it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        ...

    def __len__(self) -> int:
        """Count the samples."""
        ...

    def __getitem__(self, index: int) -> tuple["Image", Any]:
        """Return a picture and its annotation."""
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

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int,
        steps: range,
        share: Share | None = None,
        *,
        begin_in_order: bool = False,
    ) -> None:
        """Yield the micro-batches of a share, of the steps given.

        Args:
            samples: how many there are.
            batch_size: over all shares.
            seed: of the permutations.
            steps: whose keys are wanted.
            share: of each batch; by default all of it.
            begin_in_order: the first epoch takes samples by their index, the easy ones first where they are listed so.
        """
        self.samples, self.batch_size, self.seed, self.steps = samples, batch_size, seed, steps
        self.begin_in_order = begin_in_order
        self.rows = (share or Share()).rows(batch_size)

    def __len__(self) -> int:
        """Count the micro-batches."""
        return len(self.steps) * len(self.rows)

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield (epoch, index) pairs, a list per micro-batch."""
        order = lru_cache(maxsize=2)(self._order)  # a batch may span two epochs
        for step in self.steps:
            for rows in self.rows:
                positions = (divmod(step * self.batch_size + row, self.samples) for row in rows)
                yield [(epoch, int(order(epoch)[position])) for epoch, position in positions]

    def _order(self, epoch: int) -> "torch.Tensor | Permutation | range":
        if self.begin_in_order and epoch == 0:
            return range(self.samples)
        if self.samples > LARGEST_SHUFFLED:
            return Permutation(self.samples, (self.seed << 20) + epoch)
        return torch.randperm(self.samples, generator=torch.Generator().manual_seed((self.seed << 20) + epoch))


@dataclass(frozen=True)
class Sample:
    """One image ready for a batch."""

    pixels: torch.Tensor
    target: Any
    index: int
    faults: tuple[str, ...] = ()


class TrainSamples(Dataset[Sample]):
    """Augmented samples; each draws its randomness from (seed, epoch, index) alone."""

    def __init__(self, images: AnnotatedImages, transform: Callable[..., Any], seed: int) -> None:
        """Augment `images` by `transform`, which takes a picture."""
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, index: Key) -> Sample:
        """Return the sample at an (epoch, index) pair.

        A file that cannot be decoded is replaced by one that follows from the same pair, so in every rerun by the same.

        Raises:
            ImageError: its replacements cannot be decoded either.
        """
        return self._sample(index, self.vary)

    def __getitems__(self, indices: list[Key]) -> Batch:
        """Return a batch; our own transform of classification writes each image straight to its place in it."""
        transform = self.transform
        if not isinstance(transform, TrainTransform):
            return collate([self[index] for index in indices])
        images = np.empty((len(indices), *transform.preprocessing.size, transform.preprocessing.channels), np.float32)
        places = zip(indices, images, strict=True)
        samples = [self._sample(index, partial(_vary_into, transform, place)) for index, place in places]
        return _gather(samples, torch.from_numpy(images).permute(0, 3, 1, 2))

    def vary(self, image: "Image", target: Any) -> tuple[torch.Tensor, Any]:
        """Augment a picture; what is known about it stays."""
        return self.transform(image), target

    def _sample(self, index: Key, vary: Vary) -> Sample:
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
            return Sample(*vary(image, target), chosen, tuple(faults))


class DenseSamples(TrainSamples):
    """Samples whose transform takes a picture and its annotation, and moves both."""

    def vary(self, image: "Image", target: Any) -> tuple[torch.Tensor, Any]:
        """Augment a picture together with what is known about its places."""
        pixels, moved = self.transform(image, target)
        return pixels, moved


def _vary_into(
    transform: TrainTransform, place: "NDArray[np.float32]", image: "Image", target: Any
) -> tuple[torch.Tensor, Any]:
    return transform(image, out=place), target


@dataclass(frozen=True)
class Part:
    """Some of the images of a dataset."""

    images: AnnotatedImages
    indices: list[int]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.images.classes

    def __len__(self) -> int:
        """Count the images."""
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple["Image", Any]:
        """Return a picture and what is known about it."""
        return self.images[self.indices[index]]


def collate(samples: list[Sample]) -> Batch:
    """Stack samples; the channels of a position stay side by side in memory.

    Smaller images get zeros at the right and bottom, and so do their masks.
    """
    sizes = [(sample.pixels.shape[1], sample.pixels.shape[2]) for sample in samples]
    if len(set(sizes)) == 1:
        images = torch.stack([sample.pixels.permute(1, 2, 0) for sample in samples])
        return _gather(samples, images.permute(0, 3, 1, 2))
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    images = torch.zeros(len(samples), height, width, samples[0].pixels.shape[0])
    for image, sample, size in zip(images, samples, sizes, strict=True):
        image[: size[0], : size[1]] = sample.pixels.permute(1, 2, 0)
    return replace(_gather(samples, images.permute(0, 3, 1, 2)), sizes=tuple(sizes))


def _gather(samples: list[Sample], images: torch.Tensor) -> Batch:
    targets = [sample.target for sample in samples]
    pairs = [target for target in targets if isinstance(target, Pair)]
    return Batch(
        images=images,
        targets=torch.tensor([(pair.label, pair.image) for pair in pairs]) if pairs else _together(targets),
        texts=_without_padding(torch.stack([pair.tokens for pair in pairs])) if pairs else None,
        ids=tuple(sample.index for sample in samples),
        faults=tuple(fault for sample in samples for fault in sample.faults),
    )


def _without_padding(texts: torch.Tensor) -> torch.Tensor:  # (B, context)
    """Leave out what follows the longest text, which no token sees; eights stay: a compiled tower meets few lengths."""
    longest = int(texts.argmax(1).max()) + 1  # the last token has the highest number
    return texts[:, : -(-longest // 8) * 8].contiguous()


def _together(targets: list[Any]) -> Any:
    """Class indices and maps of them become one tensor; instances and pictures stay apart."""
    if isinstance(targets[0], int):
        return torch.tensor(targets)
    return torch.stack(targets) if isinstance(targets[0], torch.Tensor) else tuple(targets)


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
