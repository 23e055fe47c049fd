"""Our loader against timm's with the same augmentation: images per second of one core, from JPEG files to batches.

    python benchmarks/loader.py [DIR] [--rounds 60] [--images 64] [--out FILE]

DIR holds class folders; without it, structured pictures of 500x375 are made. Both decode with Pillow, crop and resize
(timm by Pillow, ours by torch), flip, apply RandAugment (rand-m9-mstd0.5-inc1), erase and normalise, to float32 batches
of 32 at 224 px, in this process. timm runs with its prefetcher, which normalises whole batches, and without. A round
has every loader load the same number of images, in turns, with the same draws for the n-th image of each, for
operations differ much in what they cost; totals and quartiles, in CPU seconds, so that other work on the machine counts
less.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image, ImageOps
from PIL import __version__ as pillow_version
from timm.data import auto_augment, create_dataset, create_loader

from davit.data.folder import ClassFolder
from davit.data.loader import StepSampler, TrainSamples, train_loader
from davit.data.transforms import Augmentation, TrainTransform
from davit.preprocessing import Preprocessing
from davit.seeding import seed_everything
from record import write_record

SIZE, BATCH = 224, 32
POLICY, ERASING = "rand-m9-mstd0.5-inc1", 0.25


def make_pictures(root: Path, count: int) -> None:
    """Write JPEGs of soft shapes with some texture, about as large as photographs of 500x375."""
    rng = np.random.default_rng(0)
    for index in range(count):
        layers = [
            Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).resize(
                (500, 375), Image.Resampling.BICUBIC
            )
            for shape in ((6, 8), (24, 32), (94, 125))
        ]
        picture = Image.blend(Image.blend(layers[0], layers[1], 0.35), layers[2], 0.2)
        folder = root / f"class{index % 8}"
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"{index}.jpg", quality=90)


def keep_a_bit() -> None:
    """Let timm's posterize keep one bit: with none, as its policy asks for now and then, Pillow 13 ends the loader."""

    def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
        return image if bits >= 8 else ImageOps.posterize(image, max(bits, 1))

    for name in ("Posterize", "PosterizeIncreasing", "PosterizeOriginal", "PosterizeTpu"):
        if name in auto_augment.NAME_TO_OP:
            auto_augment.NAME_TO_OP[name] = posterize


def alike(transform: Any) -> Any:
    """Give a transform a class whose n-th call draws what the n-th call of every other such transform draws."""
    calls = [0]

    class Alike(type(transform)):
        def __call__(self, *arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            seed_everything(calls[0])
            return super().__call__(*arguments, **named)

    transform.__class__ = Alike
    return transform


def davit_batches(root: Path, count: int) -> Callable[[int], Iterable[Any]]:
    """Our loader; call it with the number of the round."""
    transform = alike(TrainTransform(Augmentation(rand_augment=POLICY, erasing=ERASING), Preprocessing.imagenet(SIZE)))
    folder = ClassFolder(root)
    samples = TrainSamples(folder, transform, 0)
    steps = count // BATCH
    return lambda number: train_loader(
        samples, StepSampler(len(folder), BATCH, 0, range(number * steps, (number + 1) * steps)), 0
    )


def timm_batches(root: Path, count: int, *, prefetcher: bool) -> Callable[[int], Iterable[Any]]:
    """The loader of timm, with the same settings."""
    loader = create_loader(
        create_dataset("", root=str(root), split=""),
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=True,
        use_prefetcher=prefetcher,
        re_prob=ERASING,
        re_mode="pixel",
        auto_augment=POLICY,
        interpolation="bicubic",
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    alike(loader.dataset.transform)
    stream = chain.from_iterable(repeat(loader))  # never begun anew: the prefetcher is always one batch ahead
    return lambda _: islice(stream, count // BATCH)


def cpu_seconds(batches: Iterable[Any], count: int) -> float:
    """CPU time to load some batches."""
    started = time.process_time()
    loaded = 0
    for batch in batches:
        images = batch[0] if isinstance(batch, (tuple, list)) else batch.images
        assert images.shape[1:] == (3, SIZE, SIZE)
        assert images.dtype == torch.float32
        loaded += len(images)
    assert loaded == count
    return time.process_time() - started


def compare(root: Path, rounds: int, count: int) -> dict[str, Any]:
    """Time all loaders in turns."""
    loaders = {
        "davit": davit_batches(root, count),
        "timm": timm_batches(root, count, prefetcher=True),
        "timm without prefetcher": timm_batches(root, count, prefetcher=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(rounds + 1):
        for name, batches in loaders.items():
            spent = cpu_seconds(batches(number), count)
            if number:  # the first round warms up
                seconds[name].append(spent)
        if number % 10 == 1:
            print({name: round(count / found[-1], 1) for name, found in seconds.items()}, file=sys.stderr, flush=True)
    ours = seconds["davit"]
    return {
        name: {
            "images_per_cpu_second": round(rounds * count / sum(found), 2),
            "quartiles_of_rounds": _quartiles([count / spent for spent in found]),
            "davit_over_it": round(sum(found) / sum(ours), 3),
            "quartiles_of_ratios": _quartiles([theirs / mine for mine, theirs in zip(ours, found, strict=True)]),
        }
        for name, found in seconds.items()
    }


def _quartiles(values: list[float]) -> list[float]:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return [round(value, 3) for value in (low, middle, high)]


def main() -> None:
    """Compare, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_a_bit()
    count = options.images // BATCH * BATCH
    with tempfile.TemporaryDirectory() as made:
        root = options.root or Path(made)
        if options.root is None:
            make_pictures(root, 256)
        results = compare(root, options.rounds, count)
    report = {
        "data": options.root.name if options.root else "256 made pictures of 500x375",
        "rounds": options.rounds,
        "images_a_round": count,
        "timm": timm.__version__,
        "pillow": pillow_version,
        "results": results,
    }
    write_record(report, options.out, show=True)


if __name__ == "__main__":
    main()
