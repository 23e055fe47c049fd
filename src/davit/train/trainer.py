"""The one training loop. It is step-based, and everything a step does follows from the recipe and the step's number."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from davit.evaluation.accuracy import DivergedError
from davit.structures import Batch
from davit.train.checkpoint import ResumePoint, read_tensors, require_space, save_point, stored_names
from davit.train.device import pick_device, pick_precision
from davit.train.distributed import World
from davit.train.feed import Feed
from davit.train.log import RunLog, Window
from davit.train.parallel import reshard, whole_state
from davit.train.plan import Metric, Plan
from davit.train.recipe import Recipe
from davit.train.schedule import rate_at
from davit.train.scoring import score
from davit.train.step import Stepper, Task
from davit.train.stop import StopRequest, TrainingStoppedError

SKIPS_ALLOWED = 10
FAULTS_ALLOWED = 100
FAULTS_NAMED = 100
FAILED_SAVES_ALLOWED = 3
RECORD_EVERY = 50


class Trainer:
    """Trains one model by one recipe in one run folder."""

    def __init__(
        self, recipe: Recipe, model: nn.Module, task: Task, plan: Plan, folder: Path, world: World | None = None
    ) -> None:
        """Prepare; `run` does the work. A model that is to be sharded comes sharded."""
        self.world = world or World(device=pick_device(recipe.runtime.device))
        self.recipe, self.plan, self.folder = recipe, plan, folder
        self.model = model.to(self.world.device)
        precision = pick_precision(recipe.runtime.precision, self.world.device)
        self.stepper = Stepper(recipe, self.model, task, self.world, plan.batch_size, precision)
        self.total = recipe.schedule.total_steps(plan.samples, plan.batch_size)
        self.progress: dict[str, Any] = {"skipped": 0, "skipped_in_a_row": 0, "seconds": 0.0, "best": None}
        self.first_step = 0
        self.window = Window()
        self.stop = StopRequest()

    def resume(self, point: ResumePoint) -> None:
        """Take up where `point` was saved.

        Raises:
            ValueError: it holds other tensors than this run.
        """
        read_tensors(point, self.stepper.tensors(stored_names(point)), self.world)
        progress = dict(point.progress)
        self.stepper.resume(progress.pop("stepper"))
        self.window = Window(progress.pop("window"))
        self.progress, self.first_step = progress, point.step

    def run(self, stop: StopRequest | None = None) -> list[dict[str, Any]]:
        """Train to the end and return the records of all steps, earlier sessions' included.

        Args:
            stop: notes signals already; without it they are noted from here on.

        Raises:
            TrainingStoppedError: SIGTERM or SIGINT came; the run was saved first.
            DivergedError: ten steps in a row gave no finite loss or gradient.
            ValueError: too many samples are unreadable.
            OSError: the disk cannot hold two resume folders, or three saves in a row failed.
        """
        self.world.once(lambda: require_space(self.folder, self.stepper.bytes_to_save()))
        log = RunLog(
            self.folder,
            self.first_step,
            self.total,
            self.plan.batch_size,
            quiet=not self.world.first,
            board=self.recipe.runtime.tensorboard,
        )
        try:
            with nullcontext(stop) if stop else self.stop as self.stop:
                self._loop(log)
        finally:
            log.close()
        return log.history

    def evaluate(self) -> tuple[dict[str, float], Metric]:
        """Score the averaged weights, or the weights where there is no average, on all processes together.

        Raises:
            TrainingStoppedError: SIGTERM or SIGINT came meanwhile.
        """
        average = self.stepper.average
        with average.in_place() if average else nullcontext():
            try:
                return score(self.model, self.plan, self.world, self.stop)
            finally:
                reshard(self.model)

    def save_model(self, name: str, scores: dict[str, Any]) -> None:
        """Write the weights that are evaluated into a file of the run folder."""
        state = whole_state(self.stepper.evaluated().items(), self.world)
        self.world.once(lambda: self.plan.save_model(state or {}, self.folder / name, scores))

    def _loop(self, log: RunLog) -> None:
        clock = _Clock(self.progress["seconds"])
        if self.first_step < self.total and self.world.any(self.stop.requested):
            self._stop(self.first_step, log)
        if self.progress.pop("evaluation_is_due", False):
            self._evaluate(self.first_step, log)
        feed = Feed(self.plan, range(self.first_step, self.total), len(self.stepper.rows), log.say)
        for step in range(self.first_step, self.total):
            overdue = clock.since_save() > 60 * self.recipe.runtime.save_minutes
            stop, overdue = self._step(feed, step, overdue, log)
            log.step()
            done = step + 1
            self.progress["seconds"] = clock.total()
            if done % self._record_every() == 0 or done == self.total:
                log.record(self._summary(done))
                self.window = Window()
            if stop:
                self.progress["evaluation_is_due"] = self._evaluation_is_due(done)
                self._stop(done, log)
            if self._evaluation_is_due(done):
                self._evaluate(done, log)
            if overdue or done == self.total:
                self._save(done, log, last=done == self.total)
                clock.saved()

    def _step(self, feed: Feed, step: int, overdue: bool, log: RunLog) -> tuple[bool, bool]:
        """One update, or none, on all processes alike; return whether to stop, and whether to save."""
        epoch, data = self.plan.epochs(step), self.recipe.data
        seen: list[Batch] = []
        loss, finite = self.stepper.gradients(
            feed.batches(self.window, seen),
            step,
            self._rate(step),
            frozen=epoch < self.recipe.optimizer.frozen_epochs,
            scale=data.first_size / data.image_size if step < data.first_steps(self.total) else 1.0,
        )
        faults = [fault for batch in seen for fault in batch.faults]
        for fault in faults:
            log.say(f"replaced by another sample: {fault}")
        flags = [loss / self.world.size, not finite, self.stop.requested, overdue and self.world.first, len(faults)]
        agreed = self.world.sum(torch.tensor(flags, dtype=torch.float64)).tolist()
        if agreed[1]:
            self._skip(step, seen, finite=finite, log=log)
        else:
            self.stepper.update()
            self.progress["skipped_in_a_row"] = 0
        self.window.add(agreed[0], self.plan.batch_size)
        if agreed[4]:
            self._count_faults([fault for theirs in self.world.gather(faults) for fault in theirs])
        return bool(agreed[2]), bool(agreed[3])

    def _skip(self, step: int, seen: list[Batch], *, finite: bool, log: RunLog) -> None:
        self.stepper.skip()
        self.progress["skipped"] += 1
        self.progress["skipped_in_a_row"] += 1
        mine: list[int] = [] if finite else [index for batch in seen for index in batch.ids]
        ids = [index for theirs in self.world.gather(mine) for index in theirs]
        if self.world.first:
            log.say(f"step {step}: loss or gradient is not finite, step skipped; samples {ids}")
        if self.stepper.precision != torch.float16 and self.progress["skipped_in_a_row"] >= SKIPS_ALLOWED:
            raise DivergedError(
                f"{SKIPS_ALLOWED} steps in a row up to step {step} gave no finite loss or gradient: lower "
                "optimizer.learning_rate, or set runtime.precision=fp32; the last checkpoint is kept"
            )

    def _count_faults(self, faults: list[str]) -> None:
        """Stop when a data set loses more samples than it may; the first ones stay in mind for the report."""
        self.progress["unreadable"] = self.progress.get("unreadable", 0) + len(faults)
        known = self.progress.setdefault("replaced", [])
        known += [fault for fault in dict.fromkeys(faults) if fault not in known][: FAULTS_NAMED - len(known)]
        allowed = max(FAULTS_ALLOWED, self.total * self.plan.batch_size // 1000)
        if self.progress["unreadable"] > allowed:
            raise ValueError(
                f"{self.progress['unreadable']} samples could not be read, more than {allowed}; mend the data"
            )

    def _rate(self, step: int) -> float:
        share = rate_at(self.recipe.schedule, step, self.plan.samples / self.plan.batch_size)
        return self.recipe.optimizer.learning_rate * share

    def _record_every(self) -> int:
        return min(RECORD_EVERY, max(1, self.plan.samples // self.plan.batch_size))

    def _summary(self, done: int) -> dict[str, Any]:
        record = {"step": done, "epoch": round(self.plan.epochs(done), 3), "learning_rate": self._rate(done - 1)}
        record |= self.window.summary()
        return record | ({"skipped": self.progress["skipped"]} if self.progress["skipped"] else {})

    def _evaluation_is_due(self, done: int) -> bool:
        every = self.recipe.runtime.evaluate_every
        return done == self.total or self.plan.epochs(done) // every > self.plan.epochs(done - 1) // every

    def _evaluate(self, done: int, log: RunLog) -> None:
        try:
            scores, _ = self.evaluate()
        except TrainingStoppedError:
            self.progress["evaluation_is_due"] = True
            self._stop(done, log)
        log.record({"step": done, "epoch": round(self.plan.epochs(done), 3)} | scores)
        best = self.progress["best"]
        if best is None or scores[self.plan.score] > best[self.plan.score]:
            self.progress["best"] = scores | {"step": done}
            self._try(lambda: self.save_model("best.safetensors", scores), log)

    def _stop(self, done: int, log: RunLog) -> NoReturn:
        self._save(done, log, last=True)
        raise TrainingStoppedError(f"stopped after step {done} of {self.total}; run the same command to go on")

    def _save(self, done: int, log: RunLog, *, last: bool) -> None:
        progress = self.progress | {"stepper": self.stepper.progress(), "window": self.window.state()}
        progress |= {"seed": self.recipe.runtime.seed, "position": done * self.plan.batch_size}

        def save() -> None:
            save_point(self.folder, done, self.stepper.tensors(), progress, self.world)

        if last:
            save()
        else:
            self._try(save, log)

    def _try(self, save: Callable[[], Any], log: RunLog) -> None:
        """Save; a full disk must not end hours of training while the earlier checkpoint is intact."""
        try:
            save()
        except OSError as error:
            self.progress["failed_saves"] = self.progress.get("failed_saves", 0) + 1
            if self.world.first:
                log.say(f"{error}; the run goes on")
            if self.progress["failed_saves"] >= FAILED_SAVES_ALLOWED:
                raise
        else:
            self.progress["failed_saves"] = 0


class _Clock:
    """Seconds of all sessions, and since the last save."""

    def __init__(self, before: float) -> None:
        self.before = before
        self.started = self.last_save = time.monotonic()

    def total(self) -> float:
        return self.before + time.monotonic() - self.started

    def since_save(self) -> float:
        return time.monotonic() - self.last_save

    def saved(self) -> None:
        self.last_save = time.monotonic()
