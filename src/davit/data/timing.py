"""Where the time of loading goes: reading, decoding, augmenting, collating, and the loader as a whole."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from davit.data.images import LabelledImages
from davit.data.loader import Sample, StepSampler, TrainSamples, Transform, collate, train_loader
from davit.decoding import ImageError, read_image
from davit.seeding import seed_everything

T = TypeVar("T")

STAGES = ("read", "decode", "augment", "collate")
DENSE_STAGES = ("load", "augment", "collate")  # where annotations are read and decoded with the picture
Stages = Callable[[StepSampler], tuple[dict[str, float], int]]  # seconds of each, and images that cannot be decoded


@dataclass(frozen=True, kw_only=True)
class LoaderTimes:
    """Seconds for a number of images.

    Attributes:
        images: images that went through each stage, in one process.
        seconds: time of each stage (`STAGES` or `DENSE_STAGES`) for them.
        loader_images: images that the whole loader gave.
        loader_seconds: time between its first and its last batch.
        start_seconds: time until its first batch: starting processes, and filling the first batches.
        workers: its processes.
        broken: images that could not be decoded.
    """

    images: int
    seconds: dict[str, float]
    loader_images: int
    loader_seconds: float
    start_seconds: float
    workers: int
    broken: int

    def to_json(self) -> dict[str, Any]:
        """Return rates, in images per second; stages are of one process."""
        total = sum(self.seconds.values())
        return {
            "images_per_second": {stage: round(self.images / spent, 1) for stage, spent in self.seconds.items()},
            "share": {stage: round(spent / total, 4) for stage, spent in self.seconds.items()},
            "one_process": round(self.images / total, 1),
            "loader": {
                "workers": self.workers,
                "images_per_second": round(self.loader_images / self.loader_seconds, 1),
                "start_seconds": round(self.start_seconds, 2),
            },
            "images": self.images,
            "broken": self.broken,
        }


def time_loading(
    images: LabelledImages,
    transform: Transform,
    *,
    count: int,
    batch_size: int,
    workers: int,
    seed: int = 0,
    progress: Callable[[int], object] = lambda _: None,
) -> LoaderTimes:
    """Load images in the order of training, first stage by stage in this process, then through the whole loader.

    Args:
        images: what to load.
        transform: the augmentation.
        count: images for each of the two.
        batch_size: images in a batch.
        workers: processes of the loader; 0 is this one.
        seed: seed of order and augmentation.
        progress: told after each image.

    Raises:
        ValueError: `count` is less than two batches, so nothing could be told.
    """
    samples = TrainSamples(images, transform, seed)
    stages = partial(_stages, images, transform, seed, progress)
    return _time(samples, len(images), stages, count, batch_size, workers, progress)


def time_dense_loading(
    samples: TrainSamples,
    length: int,
    *,
    count: int,
    batch_size: int,
    workers: int,
    progress: Callable[[int], object] = lambda _: None,
) -> LoaderTimes:
    """Load images with their annotations, likewise; see `time_loading`.

    Args:
        samples: what to load and augment.
        length: how many there are.
        count: images for each of the two.
        batch_size: images in a batch.
        workers: processes of the loader; 0 is this one.
        progress: told after each image.

    Raises:
        ValueError: `count` is less than two batches, so nothing could be told.
    """
    return _time(samples, length, partial(_dense_stages, samples, progress), count, batch_size, workers, progress)


def _time(
    samples: TrainSamples,
    length: int,
    stages: Stages,
    count: int,
    batch_size: int,
    workers: int,
    progress: Callable[[int], object],
) -> LoaderTimes:
    if count < 2 * batch_size:
        raise ValueError(f"{count} images are less than two batches of {batch_size}: more images, or a smaller batch")
    steps = count // batch_size
    seconds, broken = stages(StepSampler(length, batch_size, samples.seed, range(steps)))
    # the steps that follow, so that what the first pass left in the machine's file cache is not read again at once
    sampler = StepSampler(length, batch_size, samples.seed, range(steps, 2 * steps))
    times = [time.perf_counter()]
    for batch in train_loader(samples, sampler, workers):
        times.append(time.perf_counter())
        progress(len(batch.images))
    return LoaderTimes(
        images=steps * batch_size,
        seconds=seconds,
        loader_images=(steps - 1) * batch_size,
        loader_seconds=times[-1] - times[1],
        start_seconds=times[1] - times[0],
        workers=workers,
        broken=broken,
    )


class _Clock:
    """Adds up the time of pieces of work by stage."""

    def __init__(self, stages: tuple[str, ...]) -> None:
        self.seconds = dict.fromkeys(stages, 0.0)

    def __call__(self, stage: str, work: Callable[[], T]) -> T:
        """Do it."""
        started = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[stage] += time.perf_counter() - started


def _stages(
    images: LabelledImages, transform: Transform, seed: int, progress: Callable[[int], object], sampler: StepSampler
) -> tuple[dict[str, float], int]:
    timed, broken = _Clock(STAGES), 0
    for keys in sampler:
        samples: list[Sample] = []
        for epoch, index in keys:
            data = timed("read", partial(images.encoded, index))
            progress(1)
            try:
                picture = timed("decode", partial(read_image, data))
            except ImageError:
                broken += 1
                continue
            seed_everything(seed, epoch, index)
            samples.append(Sample(timed("augment", partial(transform, picture)), int(images.labels[index]), index))
        if samples:
            timed("collate", partial(collate, samples))
    return timed.seconds, broken


def _dense_stages(
    samples: TrainSamples, progress: Callable[[int], object], sampler: StepSampler
) -> tuple[dict[str, float], int]:
    timed, broken = _Clock(DENSE_STAGES), 0
    for keys in sampler:
        ready: list[Sample] = []
        for epoch, index in keys:
            progress(1)
            try:
                picture, known = timed("load", partial(samples.images.__getitem__, index))
            except ImageError:
                broken += 1
                continue
            seed_everything(samples.seed, epoch, index)
            ready.append(Sample(*timed("augment", partial(samples.vary, picture, known)), index))
        if ready:
            timed("collate", partial(collate, ready))
    return timed.seconds, broken
