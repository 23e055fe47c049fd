"""Times and memory of variants by backends on this machine, for `planning`; remembered from one process to the next."""

import gc
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch

from davit import __version__
from davit.inference.backends import BackendName
from davit.inference.backends.choosing import make_backend
from davit.inference.backends.native.build import cache_folder, source_key
from davit.inference.backends.remembered import read_remembered, remember
from davit.inference.memory import answer, ask, watch
from davit.inference.planning import Measure, Option, Timing
from davit.inference.timing import USUAL, caller, multiply_adds, summarise, take_turns
from davit.models.complexity import count_macs, count_parameters
from davit.models.config import ClassifierConfig
from davit.models.create import make_model
from davit.models.detector_config import DetectorConfig, DetectorHead
from davit.models.segmenter_config import SegmenterConfig
from davit.models.variants import variant
from davit.preprocessing import Preprocessing
from davit.records import to_json
from davit.weights.published import Task, published

Size = tuple[int, int]  # height, width
Config = ClassifierConfig | DetectorConfig | SegmenterConfig
Head = Literal["", "mask_rcnn", "retinanet", "upernet"]

HEADS: dict[Task, tuple[Head, ...]] = {
    "classification": ("",),
    "detection": ("mask_rcnn", "retinanet"),
    "segmentation": ("upernet",),
}


def options_for(task: Task, variants: list[str], backends: list[BackendName], size: Size) -> list[Option]:
    """Every variant under every head of a task, by every backend."""
    return [
        Option(
            variant=name,
            backend=backend,
            head=head,
            macs=_macs(name, head, size),
            weights=4 * count_parameters(variant(name), 1000 if task == "classification" else None),
            score=printed.score if (printed := published(name, task, head)) else None,
        )
        for name in variants
        for head in HEADS[task]
        for backend in backends
    ]


def _macs(name: str, head: Head, size: Size) -> int:
    """Of detectors the backbone's: the head is the same for all variants, and its work depends on the picture."""
    known = multiply_adds(config_of(name, head), *size)
    return count_macs(variant(name), *size, None) if known is None else known


def config_of(name: str, head: str) -> Config:
    """A variant under a head, with as many classes as ImageNet-1k, COCO and ADE20K have."""
    backbone = variant(name)
    if head == "mask_rcnn" or head == "retinanet":
        return DetectorConfig(backbone=backbone, head=DetectorHead(kind=head))
    return SegmenterConfig(backbone=backbone) if head else ClassifierConfig(backbone=backbone, num_classes=1000)


class Stopwatch:
    """Builds options with fresh weights and measures them on noise."""

    def __init__(self, device: torch.device, batch: int, size: Size, seconds: float) -> None:
        """Measure `batch` images of a height and width at once, each option for `seconds` at least."""
        self.device, self.batch, self.size, self.seconds = device, batch, size, seconds

    def time(self, option: Option) -> Timing:
        """See `Measure`."""
        try:
            call = _open(option, self.device, self.batch, self.size)
            rounds = take_turns({option: call}, self.device, self.seconds)
        except RuntimeError as error:  # PyTorch has a type for full graphics cards only
            if "memory" not in str(error):
                raise
            raise MemoryError(str(error)) from error
        del call
        gc.collect()  # the next one may need the room
        speed = summarise(rounds, option, option, self.batch, None)
        return Timing(
            milliseconds=speed.milliseconds,
            images_per_second=speed.images_per_second.median,
            calls=speed.calls,
            peak=speed.peak.most / 2,
        )

    def memory(self, option: Option) -> int | None:
        """See `Measure`."""
        question = [asdict(option), str(self.device), torch.get_num_threads(), self.batch, *self.size]
        found = ask("davit.inference.stopwatch", question, f"{option.variant} by {option.backend}")
        return None if found is None else found.peak if found.on_card is None else found.on_card


class Remembering:
    """Asks a stopwatch only what this machine was not asked before, with the same versions and threads."""

    def __init__(self, stopwatch: Measure, where: object, path: Path | None = None, *, fresh: bool = False) -> None:
        """Remember what a stopwatch says.

        Args:
            stopwatch: what is asked.
            where: JSON values that tell its conditions, such as device, batch and size, from others.
            path: the file; by default `plan.json` in the user's cache folder.
            fresh: whether to measure everything anew.
        """
        self.stopwatch, self.path, self.fresh = stopwatch, path or measurements_file(), fresh
        self.conditions = (where, torch.get_num_threads(), torch.__version__, __version__, source_key())

    def time(self, option: Option) -> Timing:
        """See `Measure`."""
        known = self._known("time", option)
        if isinstance(known, dict) and known.keys() >= {"milliseconds", "images_per_second", "calls", "peak", "when"}:
            return Timing(**known)
        timing = self.stopwatch.time(option)
        self._keep("time", option, to_json(replace(timing, when=date.today().isoformat())))
        return timing

    def memory(self, option: Option) -> int | None:
        """See `Measure`."""
        known = self._known("memory", option)
        if isinstance(known, int):
            return known
        memory = self.stopwatch.memory(option)
        if memory is not None:
            self._keep("memory", option, memory)
        return memory

    def _known(self, what: str, option: Option) -> Any:
        return None if self.fresh else read_remembered(self.path).get(self._key(what, option))

    def _keep(self, what: str, option: Option, value: object) -> None:
        remember(self.path, {**read_remembered(self.path), self._key(what, option): value})

    def _key(self, what: str, option: Option) -> str:
        config = to_json(config_of(option.variant, option.head))
        parts = (what, option.backend, config, self.conditions)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def measurements_file() -> Path:
    """Where measurements are kept: `davit/plan.json` in the user's cache folder."""
    return cache_folder().parent / "plan.json"


def _open(option: Option, device: torch.device, batch: int, size: Size) -> Callable[[], object]:
    config = config_of(option.variant, option.head)
    model = make_model(config)
    model.preprocessing = Preprocessing.imagenet(USUAL)
    name: BackendName = option.backend  # type: ignore[bad-assignment]  # the command line has checked it
    return caller(make_backend(model.eval(), name, device), batch, *size)


if __name__ == "__main__":
    values, place, threads, images, *shape = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    one, where_to = Option(**values), torch.device(place)
    answer(watch(lambda: _open(one, where_to, images, (shape[0], shape[1])), where_to))
