"""A run: a recipe, a folder, and what comes out of them. Running it again goes on, or says that it is done."""

import json
import platform
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from davit import __version__
from davit.atomic import atomic_write
from davit.data.loader import Share, StepSampler, train_loader
from davit.models.classifier import Classifier
from davit.models.clip import ImageTextModel
from davit.models.complexity import count_macs, count_parameters
from davit.models.create import Model, make_model
from davit.models.detector import Detector
from davit.models.upernet import Segmenter
from davit.records import differences, from_json, to_json
from davit.train.build import Images, build_model
from davit.train.checkpoint import latest_point
from davit.train.device import pick_workers
from davit.train.distributed import World, joined, naming_lost_processes
from davit.train.plan import Metric, Plan
from davit.train.recipe import Recipe
from davit.train.sides import ScoredTask, first_values, list_images, make_task, train_samples, validation_batches
from davit.train.stop import StopRequest
from davit.train.trainer import Trainer
from davit.weights.load import load
from davit.weights.save import save

MODEL, BEST = "model.safetensors", "best.safetensors"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run.

    Attributes:
        recipe: what was run.
        folder: the run folder.
        model: the trained model, in eval mode.
        metrics: final scores, time, speed, parameters and MACs, as in metrics.json.
        history: the records of metrics.jsonl.
        metric: the counts behind the final scores.
        images: the data.
    """

    recipe: Recipe
    folder: Path
    model: Model
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    metric: Metric
    images: Images


def run(recipe: Recipe, folder: Path) -> RunResult | None:
    """Train a recipe in a folder, from its last checkpoint if it has one.

    Under torchrun all processes call it; the result is the first one's, the others get None.

    Args:
        recipe: what to run.
        folder: the run folder; made if it is not there.

    Raises:
        ValueError: the folder belongs to another recipe, the data or weights are unusable, or training diverged.
        OSError: the folder cannot be written.
        TrainingStoppedError: the run was asked to stop, and saved first.
        LostProcessError: another process of the run ended; its last checkpoint is intact.
    """
    with joined(recipe.runtime) as world, StopRequest() as stop, naming_lost_processes(world):
        images = list_images(recipe)
        world.once(lambda: claim(folder, recipe))
        notes = list(images.notes)
        model = build_model(recipe, images.train.classes, world, notes, first_values(recipe, images))
        task = make_task(recipe, images)
        trainer = Trainer(recipe, model, task, make_plan(recipe, model, task, images, world), folder, world)
        if point := latest_point(folder, world):
            trainer.resume(point)
            notes.append(f"going on after step {point.step} of {trainer.total} in {folder}")
        for note in notes if world.first else ():
            print(note, file=sys.stderr)
        history = trainer.run(stop)
        return _finish(recipe, folder, trainer, images, history)


def claim(folder: Path, recipe: Recipe) -> None:
    """Make the folder this recipe's, or see that it is.

    Raises:
        ValueError: it holds a run of another recipe; each differing field is named.
    """
    path = folder / "recipe.json"
    if path.exists():
        lines = differences(to_json(recipe), _with_defaults(json.loads(path.read_text())))
        if lines:
            raise ValueError(
                f"{folder} holds another run ({'; '.join(lines[:8])}): choose another --out, "
                "repeat its settings to go on with it, or start over with --fresh"
            )
        return
    if (folder / MODEL).exists():
        raise ValueError(f"{folder} holds {MODEL} but no recipe.json: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "environment.json", environment())
    write_json(path, to_json(recipe))


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """A stored recipe with the fields that came after it."""
    try:
        return to_json(from_json(Recipe, values))
    except ValueError:  # of a newer davit, or damaged: its differences are named
        return values


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a run folder."""
    return from_json(Recipe, json.loads((folder / "recipe.json").read_text()))


def make_plan(recipe: Recipe, model: Model, task: ScoredTask, images: Images, world: World | None = None) -> Plan:
    """Tell the trainer where batches come from and how a model is scored and saved.

    Raises:
        ValueError: the batch cannot be shared evenly by the processes and micro-batches.
    """
    world = world or World()
    data, seed, preprocessing = recipe.data, recipe.runtime.seed, model.preprocessing
    assert preprocessing is not None
    samples = train_samples(recipe, preprocessing, images)
    batch_size = min(data.batch_size, len(images.train))
    share = Share(rank=world.rank, size=world.size, accumulate=recipe.runtime.accumulate)
    workers = pick_workers(data.workers, world.device)
    validation, count = validation_batches(
        recipe, preprocessing, images, world, batch_size=max(1, batch_size // world.size), workers=workers
    )

    def keep(state: dict[str, Tensor], path: Path, scores: dict[str, float]) -> None:
        _save(state, model, path, recipe, scores)

    return Plan(
        samples=len(images.train),
        batch_size=batch_size,
        batches=lambda steps: train_loader(
            samples,
            StepSampler(
                len(images.train),
                batch_size,
                seed,
                steps,
                share,
                begin_in_order=data.source == "scenes" and bool(data.bright_share or data.first_size),
            ),
            workers,
        ),
        validation=validation,
        validation_count=count,
        blank=torch.zeros(1, data.channels, *preprocessing.size),
        metric=task.metric,
        save_model=keep,
        score=task.score,
    )


def _save(state: dict[str, Tensor], described: Model, path: Path, recipe: Recipe, scores: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = make_model(described.config)
    model.load_state_dict(state, assign=True)
    model.classes, model.preprocessing = described.classes, described.preprocessing
    provenance = {
        "source": f"davit train {recipe.name}",
        "init": recipe.model.init,
        "scores": scores,
        "command": shlex.join(sys.argv),
    }
    save(model, path, provenance=provenance)


def _finish(
    recipe: Recipe, folder: Path, trainer: Trainer, images: Images, history: list[dict[str, Any]]
) -> RunResult | None:
    scores, metric = trainer.evaluate()
    trainer.save_model(MODEL, scores)
    if not trainer.world.first:
        return None
    model = load(folder / MODEL)
    assert isinstance(model, (Classifier, Detector, Segmenter, ImageTextModel))
    seconds = trainer.progress["seconds"]
    parameters, macs = _cost(model, trainer.plan.blank)
    metrics: dict[str, Any] = scores | {
        "seconds": round(seconds, 2),
        "steps": trainer.total,
        "images_per_second": round(trainer.total * trainer.plan.batch_size / max(seconds, 1e-9), 2),
        "parameters": parameters,
        "macs": macs,
        "processes": trainer.world.size,
        "skipped_steps": trainer.progress["skipped"],
        "unreadable_samples": trainer.progress.get("unreadable", 0),
        "replaced_files": trainer.progress.get("replaced", []),
        "best": trainer.progress["best"],
    }
    write_json(folder / "metrics.json", metrics)
    return RunResult(
        recipe=recipe, folder=folder, model=model, metrics=metrics, history=history, metric=metric, images=images
    )


def _cost(model: Model, blank: Tensor) -> tuple[int, int]:
    """Parameters, and multiply-adds for one image; of other models counted by torch, a text included."""
    if isinstance(model, Classifier):
        config = model.config
        return (
            count_parameters(config.backbone, config.num_classes),
            count_macs(config.backbone, blank.shape[-2], blank.shape[-1], config.num_classes),
        )
    inputs = [blank]
    if isinstance(model, ImageTextModel):
        inputs.append(torch.zeros(1, model.config.head.text.context, dtype=torch.int64))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2


def environment() -> dict[str, Any]:
    """Versions, hardware and command, for whoever asks later how a score came about."""
    return {
        "command": shlex.join(sys.argv),
        "davit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def processor() -> str:
    """Name of the CPU, where the system tells."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write readable JSON."""
    with atomic_write(path) as file:
        file.write(json.dumps(values, indent=1).encode() + b"\n")
