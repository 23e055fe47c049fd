"""Where the time of loading goes: reading, decoding, augmenting, collating, and the loader as a whole."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from davit.data.images import LabelledImages
from davit.data.loader import Sample, StepSampler, TrainSamples, Transform, collate, train_loader
from davit.decoding import ImageError, read_image
from davit.seeding import seed_everything

STAGES = ("read", "decode", "augment", "collate")


@dataclass(frozen=True, kw_only=True)
class LoaderTimes:
    """Seconds for a number of images.

    Attributes:
        images: images that went through each stage, in one process.
        seconds: time of each stage (`STAGES`) for them.
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
    if count < 2 * batch_size:
        raise ValueError(f"{count} images are less than two batches of {batch_size}: more images, or a smaller batch")
    steps = count // batch_size
    seconds, broken = _stages(
        images, transform, StepSampler(len(images), batch_size, seed, range(steps)), seed, progress
    )
    # the steps that follow, so that what the first pass left in the machine's file cache is not read again at once
    sampler = StepSampler(len(images), batch_size, seed, range(steps, 2 * steps))
    times = [time.perf_counter()]
    for batch in train_loader(TrainSamples(images, transform, seed), sampler, workers):
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


def _stages(
    images: LabelledImages, transform: Transform, sampler: StepSampler, seed: int, progress: Callable[[int], object]
) -> tuple[dict[str, float], int]:
    seconds = dict.fromkeys(STAGES, 0.0)
    broken = 0

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        seconds[stage] += time.perf_counter() - started
        return result

    for keys in sampler:
        samples: list[Sample] = []
        for epoch, index in keys:
            data = timed("read", lambda index=index: images.encoded(index))
            progress(1)
            try:
                picture = timed("decode", lambda data=data: read_image(data))
            except ImageError:
                broken += 1
                continue
            seed_everything(seed, epoch, index)
            pixels = timed("augment", lambda picture=picture: transform(picture))
            samples.append(Sample(pixels, int(images.labels[index]), index))
        if samples:
            timed("collate", lambda samples=samples: collate(samples))
    return seconds, broken
