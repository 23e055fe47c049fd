"""A run: a recipe, a folder, and what comes out of them. Running it again goes on, or says that it is done."""

import json
import platform
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from davit import __version__
from davit.data.loader import StepSampler, TrainSamples, evaluation_batches, train_loader
from davit.data.transforms import TrainTransform
from davit.evaluation.evaluate import evaluate
from davit.models.classifier import Classifier
from davit.models.complexity import count_macs, count_parameters
from davit.records import differences, from_json, to_json
from davit.structures import Batch
from davit.tasks.classification import ClassificationMetric, ClassificationTask
from davit.train.build import Images, build_images, build_model
from davit.train.checkpoint import latest_point
from davit.train.device import pick_device, pick_workers
from davit.train.recipe import Recipe
from davit.train.trainer import Plan, Trainer
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
    model: Classifier
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    metric: ClassificationMetric
    images: Images


def run(recipe: Recipe, folder: Path) -> RunResult:
    """Train a recipe in a folder, from its last checkpoint if it has one.

    Args:
        recipe: what to run.
        folder: the run folder; made if it is not there.

    Raises:
        ValueError: the folder belongs to another recipe, the data or weights are unusable, or training diverged.
        OSError: the folder cannot be written.
        TrainingStoppedError: the run was asked to stop, and saved first.
    """
    images = build_images(recipe.data, recipe.runtime.seed)
    claim(folder, recipe)
    for note in images.notes:
        print(note, file=sys.stderr)
    model = build_model(recipe, images.train.classes)
    task = ClassificationTask(recipe.task, len(images.train.classes))
    plan = make_plan(recipe, model, task, images)
    trainer = Trainer(recipe, model, task, plan, folder)
    point = latest_point(folder)
    if point:
        trainer.resume(point)
        print(f"going on after step {point.step} of {trainer.total} in {folder}", file=sys.stderr)
    history = trainer.run()
    return _finish(recipe, folder, trainer, task, images, history)


def claim(folder: Path, recipe: Recipe) -> None:
    """Make the folder this recipe's, or see that it is.

    Raises:
        ValueError: it holds a run of another recipe; each differing field is named.
    """
    path = folder / "recipe.json"
    if path.exists():
        theirs = json.loads(path.read_text())
        lines = differences(to_json(recipe), theirs)
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


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a run folder."""
    return from_json(Recipe, json.loads((folder / "recipe.json").read_text()))


def make_plan(recipe: Recipe, model: Classifier, task: ClassificationTask, images: Images) -> Plan:
    """Tell the trainer where batches come from and how a model is scored and saved."""
    data, seed = recipe.data, recipe.runtime.seed
    assert model.preprocessing is not None
    samples = TrainSamples(images.train, TrainTransform(data.augmentation, model.preprocessing), seed)
    batch_size = min(data.batch_size, len(images.train))
    steps_per_epoch = len(images.train) // batch_size
    last = recipe.schedule.total_epochs * steps_per_epoch

    def score(scored: nn.Module) -> dict[str, float]:
        return evaluate(scored, validation_batches(recipe, model, images), task.metric())

    def keep(kept: nn.Module, path: Path, scores: dict[str, float]) -> None:
        _save(kept, model, path, recipe, scores)

    return Plan(
        loader=lambda first: train_loader(
            samples, StepSampler(len(images.train), batch_size, seed, first, last), workers_of(recipe)
        ),
        steps_per_epoch=steps_per_epoch,
        evaluate=score,
        save_model=keep,
        score="top1",
    )


def validation_batches(recipe: Recipe, model: Classifier, images: Images) -> Iterator[Batch]:
    """Each validation image once."""
    assert model.preprocessing is not None
    data = recipe.data
    return evaluation_batches(
        images.validation, model.preprocessing, batch_size=data.batch_size, workers=workers_of(recipe)
    )


def workers_of(recipe: Recipe) -> int:
    """Loader processes of a recipe on this machine."""
    return pick_workers(recipe.data.workers, pick_device(recipe.runtime.device))


def _save(trained: nn.Module, described: Classifier, path: Path, recipe: Recipe, scores: dict[str, Any]) -> None:
    assert isinstance(trained, Classifier)
    trained.classes, trained.preprocessing = described.classes, described.preprocessing
    provenance = {
        "source": f"davit train {recipe.name}",
        "init": recipe.model.init,
        "scores": scores,
        "command": shlex.join(sys.argv),
    }
    save(trained, path, provenance=provenance)


def _finish(
    recipe: Recipe,
    folder: Path,
    trainer: Trainer,
    task: ClassificationTask,
    images: Images,
    history: list[dict[str, Any]],
) -> RunResult:
    model = trainer.final_model
    assert isinstance(model, Classifier)
    metric = task.metric()
    scores = evaluate(model, validation_batches(recipe, model, images), metric)
    config, size = model.config, recipe.data.image_size
    seconds = trainer.progress["seconds"]
    metrics: dict[str, Any] = scores | {
        "seconds": round(seconds, 2),
        "steps": trainer.total,
        "images_per_second": round(trainer.total * recipe.data.batch_size / max(seconds, 1e-9), 2),
        "parameters": count_parameters(config.backbone, config.num_classes),
        "macs": count_macs(config.backbone, size, size, config.num_classes),
        "skipped_steps": trainer.progress["skipped"],
        "unreadable_samples": trainer.progress.get("unreadable", 0),
        "best": trainer.progress["best"],
    }
    _save(model, model, folder / MODEL, recipe, scores)
    write_json(folder / "metrics.json", metrics)
    finished = load(folder / MODEL)
    assert isinstance(finished, Classifier)
    return RunResult(
        recipe=recipe,
        folder=folder,
        model=finished,
        metrics=metrics,
        history=history,
        metric=metric,
        images=images,
    )


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
    path.write_text(json.dumps(values, indent=1) + "\n")
