"""What a run folder tells, whatever state it is in: finished, running, stopped, crashed in the middle of a line."""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from davit.models.clip_config import ImageTextConfig
from davit.models.complexity import count_parameters
from davit.models.config import DaViTConfig
from davit.records import from_json
from davit.train.log import read_history

State = Literal["finished", "running", "stopped", "unreadable"]
QUIET_MINUTES = 10.0  # a run that has written nothing for so long, and for twice its save_minutes, does not run


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run as its folder shows it; None where the folder does not tell.

    Attributes:
        path: the folder.
        recipe: its recipe.json, as it is: it may be of another version.
        history: records of metrics.jsonl.
        metrics: its metrics.json; empty before the end.
        state: `running` means that something was written lately.
        parameters: of the model; without its head where no weights are saved yet.
        epochs_done: at the last record.
        epochs: of the whole run.
        loss: of training, at the last record that has one.
        seconds: that training took, of all sessions; up to the last saved step where it has not ended.
        images_per_second: of the run, or the median of its records.
    """

    path: Path
    recipe: dict[str, Any]
    history: list[dict[str, Any]]
    metrics: dict[str, Any]
    state: State
    parameters: int | None
    epochs_done: float | None
    epochs: float | None
    loss: float | None
    seconds: float | None
    images_per_second: float | None

    def values(self, metric: str) -> list[tuple[float, float]]:
        """(step, value) of the records that have a number of that name."""
        return [
            (float(record["step"]), float(record[metric]))
            for record in self.history
            if isinstance(record.get(metric), (int, float))
        ]

    @property
    def name(self) -> str:
        """Name of its recipe."""
        return str(self.recipe.get("name", "?"))

    @property
    def variant(self) -> str:
        """Name of its architecture."""
        return str(_group(self.recipe, "model").get("variant", "?"))


def find_runs(roots: list[Path]) -> list[Path]:
    """Run folders: the roots themselves, and those below them.

    Raises:
        ValueError: a root is no folder, or holds no run.
    """
    found: dict[Path, None] = {}
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"{root} is {'a file' if root.exists() else 'not there'}, expected a folder of runs")
        here = sorted(path.parent for path in root.rglob("recipe.json"))
        if not here:
            raise ValueError(f"{root} holds no run: no folder in it has a recipe.json")
        found |= dict.fromkeys(here)
    return list(found)


def read_run(path: Path) -> RunFolder:
    """Read what is there; what is missing or cut short is None or empty."""
    recipe, metrics = _read_json(path / "recipe.json"), _read_json(path / "metrics.json")
    history = _records(path)
    schedule = _group(recipe, "schedule")
    losses = [record["loss"] for record in history if isinstance(record.get("loss"), (int, float))]
    speeds = [record["images_per_second"] for record in history if record.get("images_per_second")]
    return RunFolder(
        path=path,
        recipe=recipe,
        history=history,
        metrics=metrics,
        state=_state(path, recipe, metrics),
        parameters=metrics.get("parameters", _parameters(path, recipe)),
        epochs_done=history[-1].get("epoch") if history else None,
        epochs=schedule["epochs"] + schedule.get("cooldown_epochs", 0) if "epochs" in schedule else None,
        loss=losses[-1] if losses else None,
        seconds=metrics.get("seconds", _saved_seconds(path)),
        images_per_second=metrics.get("images_per_second", statistics.median(speeds) if speeds else None),
    )


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        return [record for record in read_history(path) if isinstance(record, dict) and "step" in record]
    except (OSError, ValueError):
        return []


def _state(path: Path, recipe: dict[str, Any], metrics: dict[str, Any]) -> State:
    if not recipe:
        return "unreadable"
    if metrics:
        return "finished"
    minutes = _group(recipe, "runtime").get("save_minutes", 0)
    patience = 60 * max(QUIET_MINUTES, 2 * minutes if isinstance(minutes, (int, float)) else 0)
    return "running" if time.time() - _last_written(path) < patience else "stopped"


def _last_written(path: Path) -> float:
    times = [path.stat().st_mtime]
    for entry in path.iterdir():
        try:
            times.append(entry.stat().st_mtime)
        except FileNotFoundError:  # a run deletes its older resume folders meanwhile
            continue
    return max(times)


def _parameters(path: Path, recipe: dict[str, Any]) -> int | None:
    try:
        from davit.weights.checkpoint import read_header

        config = read_header(path / "best.safetensors").config
        if isinstance(config, ImageTextConfig):
            return None  # metrics.json tells it
        if not isinstance(config, DaViTConfig):
            return count_parameters(config.backbone, config.num_classes)
        return count_parameters(config, None)
    except (OSError, ValueError):
        pass
    try:
        return count_parameters(from_json(DaViTConfig, _group(recipe, "model")["backbone"]), None)
    except (KeyError, ValueError, TypeError):
        return None


def _saved_seconds(path: Path) -> float | None:
    for folder in sorted(path.glob("step-*"), reverse=True):
        seconds = _group(_group(_read_json(folder / "manifest.json"), "manifest"), "progress").get("seconds")
        if isinstance(seconds, (int, float)):
            return float(seconds)
    return None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none, or only a part of it."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _group(values: dict[str, Any], name: str) -> dict[str, Any]:
    group = values.get(name)
    return group if isinstance(group, dict) else {}
