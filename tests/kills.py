"""Kill a run again and again with SIGKILL, and see what is left."""

import os
import random
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import davit.train.trainer as trainer_module
from davit.train.checkpoint import latest_point
from davit.train.log import read_history
from davit.train.recipe import Recipe
from runs import make_trainer


@dataclass
class KillReport:
    """What so many kills did to one run."""

    kills: int = 0
    kills_in_a_save: int = 0
    unusable: int = 0  # starts that found no checkpoint although one had been complete
    lost_checkpoints: int = 0  # complete checkpoints that were gone or damaged, newer ones not counted
    most_steps_lost: int = 0
    leftovers: int = 0  # unfinished files that outlived the next start
    runs: int = 0
    equal_to_an_uninterrupted_run: bool = True
    equal_log: bool = True  # neither gaps nor repeats, and the same losses


def kill_often(recipe: Recipe, folder: Path, kills: int, seed: int) -> KillReport:
    """Run to the end as often as it takes to kill `kills` times, every second time in the middle of a save."""
    torch.set_num_threads(1)
    expected = _final_weights(recipe, folder / "uninterrupted")
    report, rng = KillReport(), random.Random(seed)
    while report.kills < kills:
        run = folder / f"run-{report.runs}"
        report.runs += 1
        _until_it_ends(recipe, run, report, rng, kills)
        weights = _final_weights(recipe, run)
        same = all(torch.equal(weights[name], expected[name]) for name in expected)
        report.equal_to_an_uninterrupted_run &= same
        report.equal_log &= _losses(run) == _losses(folder / "uninterrupted")
    return report


def _until_it_ends(recipe: Recipe, run: Path, report: KillReport, rng: random.Random, kills: int) -> None:
    while True:
        before = latest_point(run) if run.exists() else None
        in_save = report.kills % 2 == 0
        patience = rng.uniform(0, 0.12) if in_save else rng.uniform(0, 1.0)
        steps_before_save = rng.randrange(4)
        child, reader = _fork(recipe, run)
        seen = _watch(reader, patience, steps_before_save if in_save else None, alive=report.kills < kills)
        if seen.finished:
            os.waitpid(child, 0)
            return
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        report.kills += 1
        report.kills_in_a_save += seen.saving
        after = latest_point(run)
        complete = max([before.step if before else 0, *seen.saved])
        report.unusable += complete > 0 and after is None
        report.lost_checkpoints += after is not None and after.step < complete
        report.most_steps_lost = max(report.most_steps_lost, seen.step - (after.step if after else 0))
        report.leftovers += len([*run.glob("*.tmp"), *run.glob(".*.tmp")])


@dataclass
class _Seen:
    step: int = 0
    saved: tuple[int, ...] = ()
    saving: bool = False
    finished: bool = False


def _watch(reader: int, patience: float, save_to_hit: int | None, *, alive: bool) -> _Seen:
    """Listen to a run until it is time to kill it, or until it ends."""
    seen, text, saves = _Seen(), b"", 0
    deadline = time.monotonic() + patience if save_to_hit is None and alive else None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([reader], [], [], left)
        if not ready:
            return seen
        data = os.read(reader, 65536)
        if not data:
            seen.finished = True
            return seen
        text += data
        *lines, text = text.split(b"\n")
        for line in lines:
            word, number = line.split()
            if word == b"step":
                seen.step = int(number)
            elif word == b"saving":
                seen.saving = True
                saves += 1
                if alive and save_to_hit is not None and saves > save_to_hit and deadline is None:
                    deadline = time.monotonic() + patience
            else:
                seen.saving = False
                seen.saved += (int(number),)


def _fork(recipe: Recipe, run: Path) -> tuple[int, int]:
    """Train in a child that tells of its steps and saves."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    status = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        trainer = make_trainer(recipe, run)
        if point := latest_point(run):
            trainer.resume(point)
        save, update = trainer_module.save_point, trainer.stepper.update

        def told(folder, step, *rest):
            os.write(writer, f"saving {step}\n".encode())
            save(folder, step, *rest)
            os.write(writer, f"saved {step}\n".encode())

        count = [trainer.first_step]

        def updated():
            update()
            count[0] += 1
            os.write(writer, f"step {count[0]}\n".encode())

        trainer_module.save_point, trainer.stepper.update = told, updated
        trainer.run()
        status = 0
    finally:
        os._exit(status)


def _final_weights(recipe: Recipe, run: Path) -> dict[str, torch.Tensor]:
    trainer = make_trainer(recipe, run)
    if point := latest_point(run):
        trainer.resume(point)
    if trainer.first_step < trainer.total:
        trainer.run()
    return {name: tensor.clone() for name, tensor in trainer.stepper.tensors().items()}


def _losses(run: Path) -> list[tuple]:
    return [(r["step"], r.get("loss"), r.get("top1")) for r in read_history(run)]
