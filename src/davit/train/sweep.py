"""Which learning rate: short runs of one recipe that differ in nothing else, and what they suggest.

Short annealed runs rather than one run under a rising rate: such a range test shows where training breaks, but each of
its losses belongs to the rates before it as well, and none is held out. These compare what a whole run is judged by.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from davit.atomic import atomic_write
from davit.evaluation.accuracy import DivergedError
from davit.records import to_json
from davit.train.distributed import World, joined
from davit.train.log import read_history
from davit.train.recipe import Recipe
from davit.train.run import run

NEAR = 0.01  # share of the lowest loss within which two single runs cannot be told apart


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One short run.

    Attributes:
        rate: its peak learning rate.
        folder: its run folder.
        validation_loss: at the end; none for a run that diverged.
        training_loss: mean of the last steps, augmentation and mixing included; none likewise.
        top1: at the end; none likewise.
        note: what is wrong with it; empty for nothing.
    """

    rate: float
    folder: str
    validation_loss: float | None = None
    training_loss: float | None = None
    top1: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What the short runs showed.

    Attributes:
        epochs: of each.
        points: the runs, lowest rate first.
        suggested: the rate to take; none where all diverged.
        reason: why.
    """

    epochs: int
    points: tuple[SweepPoint, ...]
    suggested: float | None
    reason: str

    def lines(self) -> list[str]:
        """A table, and the suggestion."""
        rows = [f"{'rate':>9}  {'validation loss':>15}  {'training loss':>13}  {'top-1':>7}"]
        rows += [_row(point, point.rate == self.suggested) for point in self.points]
        if self.suggested is None:
            return [*rows, self.reason]
        return [*rows, f"suggested: optimizer.learning_rate={self.suggested:g}, {self.reason}"]

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""
        return to_json(self)


def sweep(recipe: Recipe, rates: Sequence[float], folder: Path, epochs: int | None = None) -> Sweep:
    """Train a recipe briefly at each rate, from low to high; a rate that was tried in this folder is not tried again.

    Args:
        recipe: what to run; its own rate does not matter.
        rates: peak learning rates.
        folder: holds a run folder for each rate, and `sweep.json`.
        epochs: of each run; by default a tenth of the recipe's.

    Raises:
        ValueError: no rates or epochs to try, or the folder holds a sweep of another recipe.
        OSError: the folder cannot be written.
        TrainingStoppedError: it was asked to stop; the run at hand was saved first.
    """
    epochs = max(1, round(recipe.schedule.epochs / 10)) if epochs is None else epochs
    if epochs < 1:
        raise ValueError(f"--sweep-epochs must be at least 1, got {epochs}")
    tried = sorted(set(rates))
    if not tried or not all(0 < rate < math.inf for rate in tried):
        raise ValueError(f"--lr-sweep takes positive rates, such as 1e-4,3e-4,1e-3, got {tried}")
    points = []
    with joined(recipe.runtime) as world:
        for number, rate in enumerate(tried, 1):
            if world.first:
                print(f"learning rate {rate:g}, {number} of {len(tried)}, {epochs} epochs", file=sys.stderr)
            points.append(_try(shortened(recipe, rate, epochs), folder / f"lr-{rate:g}", world))
        suggested, reason = suggest(points)
        found = Sweep(epochs=epochs, points=tuple(points), suggested=suggested, reason=reason)
        world.once(lambda: _write(folder / "sweep.json", found.to_json()))
    return found


def shortened(recipe: Recipe, rate: float, epochs: int) -> Recipe:
    """The recipe in few epochs: annealed to the floor like the whole run, warm-up and freezing at most a quarter each.

    Weights are not averaged: an average over a short run says more about its length than about the rate.
    """
    schedule, optimizer = recipe.schedule, recipe.optimizer
    return replace(
        recipe,
        optimizer=replace(optimizer, learning_rate=rate, frozen_epochs=min(optimizer.frozen_epochs, epochs / 4)),
        schedule=replace(
            schedule,
            epochs=epochs,
            steps=0,
            warmup_epochs=min(schedule.warmup_epochs, epochs / 4),
            warmup_steps=0,
            cooldown_epochs=0,
            drops=tuple(drop * epochs / schedule.epochs for drop in schedule.drops),
        ),
        runtime=replace(recipe.runtime, ema=0.0, evaluate_every=epochs),
    )


def suggest(points: Sequence[SweepPoint]) -> tuple[float | None, str]:
    """The lowest rate whose validation loss cannot be told from the lowest one, and why."""
    good = [(point.validation_loss, point.rate) for point in points if point.validation_loss is not None]
    if not good:
        return None, f"every rate diverged: try lower ones, such as {points[0].rate / 10:g}"
    loss, best = min(good)
    near = [rate for other, rate in good if other <= loss * (1 + NEAR)]
    chosen = min(near)
    reason = f"the lowest validation loss, {loss:.4g}"
    if chosen < best:
        reason = f"within {NEAR:.0%} of {reason} at {best:g}: of equals the lower rate is the safer one in a long run"
    if len(points) > 1 and best == points[-1].rate:
        reason += f"; the highest rate did best, so try higher ones too, such as {3 * best:g}"
    elif len(points) > 1 and chosen == points[0].rate:
        reason += f"; it is the lowest rate tried, so try lower ones too, such as {chosen / 3:.2g}"
    return chosen, reason


def draw(found: Sweep, path: Path) -> None:
    """Plot losses against rates into a PNG.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("plots need matplotlib: install davit[train] and run the same command again") from None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    whole = [point for point in found.points if point.validation_loss is not None]
    rates = [point.rate for point in whole]
    axes.plot(rates, [_or_nan(p.validation_loss) for p in whole], "o-", color="#1f5fa8", label="validation loss")
    axes.plot(rates, [_or_nan(p.training_loss) for p in whole], "s--", color="#c2571a", label="training loss")
    for point in whole:
        if point.rate == found.suggested:
            axes.plot(
                point.rate, _or_nan(point.validation_loss), "o", ms=15, mfc="none", mec="#1f5fa8", label="suggested"
            )
    for point in found.points:
        if point.validation_loss is None:
            axes.axvline(point.rate, color="#777777", linestyle=":")
            axes.annotate("diverged ", (point.rate, 1), xycoords=("data", "axes fraction"), ha="right", va="top")
    axes.set_xscale("log")
    axes.set_xticks(
        [point.rate for point in found.points], [f"{point.rate:g}" for point in found.points], rotation=30, ha="right"
    )
    axes.minorticks_off()
    axes.set_xlabel("peak learning rate")
    axes.set_ylabel("loss at the end")
    axes.set_title(f"{len(found.points)} runs of {found.epochs} epoch{'s' if found.epochs > 1 else ''}")
    axes.grid(alpha=0.3)
    if whole:
        axes.legend()
    figure.savefig(path, dpi=120)


def _try(short: Recipe, folder: Path, world: World) -> SweepPoint:
    """Run, unless this very run is known already."""
    known = world.once(lambda: _outcome(short, folder))
    if known is None:
        try:
            run(short, folder)
        except DivergedError as error:
            message = str(error)
            if world.first:
                print(f"learning rate {short.optimizer.learning_rate:g} diverged: {message}", file=sys.stderr)
            world.once(lambda: _write(folder / "diverged.json", {"error": message}))
        known = world.once(lambda: _outcome(short, folder))
    assert known is not None
    return known


def _outcome(short: Recipe, folder: Path) -> SweepPoint | None:
    """What a finished run of exactly this recipe left."""
    settings, metrics, diverged = (folder / name for name in ("recipe.json", "metrics.json", "diverged.json"))
    if not settings.exists() or json.loads(settings.read_text()) != json.loads(json.dumps(to_json(short))):
        return None
    bare = SweepPoint(rate=short.optimizer.learning_rate, folder=str(folder))
    if diverged.exists():
        return replace(bare, note="diverged: " + json.loads(diverged.read_text())["error"])
    if not metrics.exists():
        return None
    scores = json.loads(metrics.read_text())
    if not math.isfinite(scores["validation_loss"]):
        return replace(bare, note="diverged: the validation loss is not finite")
    return replace(
        bare,
        validation_loss=scores["validation_loss"],
        training_loss=_last_loss(read_history(folder)),
        top1=scores["top1"],
    )


def _last_loss(history: Sequence[dict[str, Any]]) -> float | None:
    """Mean training loss of the records of the last tenth of the steps; the last one alone may cover a single step."""
    losses: list[tuple[int, float]] = []
    since, before = 0.9 * history[-1]["step"] if history else 0.0, 0
    for record in history:
        if record.get("loss") is None:
            continue
        if record["step"] > since:
            losses.append((record["step"] - before, record["loss"]))
        before = record["step"]
    steps = sum(weight for weight, _ in losses)
    return sum(weight * loss for weight, loss in losses) / steps if losses else None


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(f"{json.dumps(values, indent=1)}\n".encode())


def _row(point: SweepPoint, suggested: bool) -> str:
    if point.validation_loss is None:
        return f"{point.rate:>9g}  {'diverged':>15}"
    training, top1 = _or_nan(point.training_loss), _or_nan(point.top1)
    mark = "  <-" if suggested else ""
    return f"{point.rate:>9g}  {point.validation_loss:>15.4f}  {training:>13.4f}  {top1:>7.2%}{mark}"


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
