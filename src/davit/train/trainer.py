"""The one training loop. It is step-based, and everything a step does follows from the recipe and the step's number."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from davit.seeding import seed_everything
from davit.structures import Batch
from davit.train.checkpoint import ResumePoint, flatten_optimizer, restore_optimizer, save_point
from davit.train.device import pick_device, pick_precision
from davit.train.ema import average_of
from davit.train.log import RunLog, Window
from davit.train.optimizer import make_optimizer, set_rate
from davit.train.recipe import Recipe
from davit.train.schedule import rate_at
from davit.train.stop import StopRequest, TrainingStoppedError

STEP_STREAM = 1  # separates the randomness of steps from that of samples
SKIPS_ALLOWED = 10
FAULTS_ALLOWED = 100
RECORD_EVERY = 50


class Task(Protocol):
    """A loss."""

    def losses(self, model: Callable[..., Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the loss by name."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the recipe was built into.

    Attributes:
        loader: makes the batches of the steps from a first one on.
        steps_per_epoch: steps in an epoch.
        evaluate: scores a model.
        save_model: writes the weights file of a model, with its scores.
        score: key of the metric that chooses the best model.
    """

    loader: Callable[[int], DataLoader[Batch]]
    steps_per_epoch: int
    evaluate: Callable[[nn.Module], dict[str, float]]
    save_model: Callable[[nn.Module, Path, dict[str, float]], None]
    score: str


class Trainer:
    """Trains one model by one recipe in one run folder."""

    def __init__(self, recipe: Recipe, model: nn.Module, task: Task, plan: Plan, folder: Path) -> None:
        """Prepare; `run` does the work."""
        runtime = recipe.runtime
        self.recipe, self.task, self.plan, self.folder = recipe, task, plan, folder
        self.device = pick_device(runtime.device)
        self.model = model.to(self.device)
        self.average = average_of(self.model, runtime.ema) if runtime.ema else None
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self.precision = pick_precision(runtime.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.total = recipe.schedule.total_epochs * plan.steps_per_epoch
        self.progress: dict[str, Any] = {"skipped": 0, "skipped_in_a_row": 0, "seconds": 0.0, "best": None}
        self.first_step = 0

    @property
    def final_model(self) -> nn.Module:
        """The model that is evaluated and saved: the average, where there is one."""
        return self.average.module if self.average else self.model

    def resume(self, point: ResumePoint) -> None:
        """Take up where `point` was saved."""
        self.model.load_state_dict(point.tensors["model"])
        restore_optimizer(self.optimizer, point.tensors["optimizer"])
        if self.average:
            self.average.load_state_dict(point.tensors["average"])
        self.scaler.load_state_dict(point.progress.pop("scaler", {}))
        self.progress = point.progress
        self.first_step = point.step

    def run(self) -> list[dict[str, Any]]:
        """Train to the end and return the records of all steps, earlier sessions' included.

        Raises:
            TrainingStoppedError: SIGTERM or SIGINT came; the run was saved first.
            ValueError: ten steps in a row gave no finite loss or gradient.
        """
        log = RunLog(self.folder, self.first_step, self.total, self.recipe.data.batch_size)
        try:
            with StopRequest() as stop:
                self._loop(log, stop)
        finally:
            log.close()
        return log.history

    def _loop(self, log: RunLog, stop: StopRequest) -> None:
        started = last_save = time.monotonic()
        before = self.progress["seconds"]
        batches = iter(self.plan.loader(self.first_step))
        forward = torch.compile(self.model) if self.recipe.runtime.compile else self.model
        window = Window()
        for step in range(self.first_step, self.total):
            batch = window.wait_for(batches).to(self.device)
            self._note_faults(batch, log)
            seed_everything(self.recipe.runtime.seed, STEP_STREAM, step)  # drop path and mixing
            window.add(self._step(forward, batch, step, log), len(batch.images))
            log.step()
            done = step + 1
            self.progress["seconds"] = before + time.monotonic() - started
            if done % min(RECORD_EVERY, self.plan.steps_per_epoch) == 0 or done == self.total:
                log.record(self._summary(done, window))
                window = Window()
            if self._evaluation_is_due(done):
                self._evaluate(done, log)
            overdue = time.monotonic() - last_save > 60 * self.recipe.runtime.save_minutes
            if stop.requested or overdue or done == self.total:
                self._save(done, log, last=done == self.total)
                last_save = time.monotonic()
            if stop.requested and done < self.total:
                raise TrainingStoppedError(f"stopped after step {done} of {self.total}; run the same command to go on")

    def _step(self, forward: Callable[..., Tensor], batch: Batch, step: int, log: RunLog) -> float:
        """One update; a loss or gradient that is not finite leaves weights, moments and average as they were."""
        config = self.recipe.optimizer
        self.model.train()
        set_rate(self.optimizer, config.learning_rate * self._rate(step))
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            loss = torch.stack(list(self.task.losses(forward, batch).values())).sum()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm or math.inf)
        finite = bool(torch.isfinite(loss.detach() + norm))
        if finite:
            self.scaler.step(self.optimizer)
            if self.average:
                self.average.update_parameters(self.model)
            self.progress["skipped_in_a_row"] = 0
        else:
            self._skipped(step, batch, log)
        self.scaler.update()
        self.optimizer.zero_grad()
        return loss.item()

    def _skipped(self, step: int, batch: Batch, log: RunLog) -> None:
        self.progress["skipped"] += 1
        self.progress["skipped_in_a_row"] += 1
        log.say(f"step {step}: loss or gradient is not finite, step skipped; samples {list(batch.ids)}")
        if self.precision != torch.float16 and self.progress["skipped_in_a_row"] >= SKIPS_ALLOWED:
            raise ValueError(
                f"{SKIPS_ALLOWED} steps in a row up to step {step} gave no finite loss or gradient: lower "
                "optimizer.learning_rate, or set runtime.precision=fp32; the last checkpoint is kept"
            )

    def _note_faults(self, batch: Batch, log: RunLog) -> None:
        """Name files that were replaced, and stop when a data set loses more than it may."""
        for fault in batch.faults:
            self.progress["unreadable"] = self.progress.get("unreadable", 0) + 1
            log.say(f"replaced by another sample: {fault}")
        allowed = max(FAULTS_ALLOWED, self.total * self.recipe.data.batch_size // 1000)
        if batch.faults and self.progress["unreadable"] > allowed:
            raise ValueError(
                f"{self.progress['unreadable']} samples could not be read, more than {allowed}; mend the data"
            )

    def _rate(self, step: int) -> float:
        return rate_at(self.recipe.schedule, step, self.plan.steps_per_epoch)

    def _summary(self, done: int, window: "Window") -> dict[str, Any]:
        epoch = round(done / self.plan.steps_per_epoch, 3)
        rate = self.recipe.optimizer.learning_rate * self._rate(done - 1)
        record = {"step": done, "epoch": epoch, "learning_rate": rate} | window.summary()
        return record | ({"skipped": self.progress["skipped"]} if self.progress["skipped"] else {})

    def _evaluation_is_due(self, done: int) -> bool:
        epoch, rest = divmod(done, self.plan.steps_per_epoch)
        return done == self.total or (rest == 0 and epoch % self.recipe.runtime.evaluate_every == 0)

    def _evaluate(self, done: int, log: RunLog) -> None:
        scores = self.plan.evaluate(self.final_model)
        log.record({"step": done, "epoch": round(done / self.plan.steps_per_epoch, 3)} | scores)
        best = self.progress["best"]
        if best is None or scores[self.plan.score] > best[self.plan.score]:
            self.progress["best"] = scores | {"step": done}
            self._try(lambda: self.plan.save_model(self.final_model, self.folder / "best.safetensors", scores), log)

    def _save(self, done: int, log: RunLog, *, last: bool) -> None:
        tensors = {"model": self.model.state_dict(), "optimizer": flatten_optimizer(self.optimizer)}
        if self.average:
            tensors["average"] = self.average.state_dict()
        progress = self.progress | ({"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {})
        point = ResumePoint(step=done, tensors=tensors, progress=progress)
        if last:
            save_point(self.folder, point)
        else:
            self._try(lambda: save_point(self.folder, point), log)

    def _try(self, save: Callable[[], Any], log: RunLog) -> None:
        """Save; a full disk must not end hours of training while the earlier checkpoint is intact."""
        try:
            save()
        except OSError as error:
            self.progress["failed_saves"] = self.progress.get("failed_saves", 0) + 1
            log.say(f"{error}; the run goes on")
            if self.progress["failed_saves"] >= 3:
                raise
        else:
            self.progress["failed_saves"] = 0
