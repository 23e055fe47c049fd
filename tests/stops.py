"""Runs of two processes that are told to stop, or lose one of theirs, at an awkward moment."""

import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import davit.train.run as run_module
import davit.train.trainer as trainer_module
from davit.tasks.classification import ClassificationMetric
from davit.train.step import Stepper

SETTINGS = [
    "model.backbone.widths=32,32,32,32", "model.backbone.depths=1,1,1,1", "model.backbone.drop_path=0.1",
    "data.batch_size=48", "data.workers=0", "schedule.epochs=1", "schedule.warmup_epochs=0.5", "runtime.ema=0.9",
    "task.mixup=0.8",
]  # fmt: skip
STEPS = 30  # 1437 / 48, rounded up
PHASES = ("start", "step", "evaluation", "save")


@dataclass(frozen=True)
class Outcome:
    """How two processes ended.

    Attributes:
        codes: exit codes.
        seconds: from the signal to the last exit.
        text: what they wrote to stderr.
    """

    codes: tuple[int, ...]
    seconds: float
    text: str


def train_on_two(folder: Path, *, at: str = "", number: int = 0, rank: int = 1, signal_: int = 0) -> Outcome:
    """Run `davit train digits` on two processes; `rank` sends itself a signal at the `number`th moment of a phase."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    log, mark = folder / "stderr.txt", folder / "signalled"
    log.unlink(missing_ok=True)
    mark.unlink(missing_ok=True)
    children = []
    for mine in range(2):
        child = os.fork()
        if not child:
            _child(folder, mine, port, log, mark if signal_ and mine == rank else None, at, number, signal_)
        children.append(child)
    codes = tuple(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    seconds = time.time() - float(mark.read_text()) if mark.exists() else 0.0
    return Outcome(codes, seconds, log.read_text())


def _child(folder: Path, rank: int, port: int, log: Path, mark: Path | None, at: str, number: int, sent: int) -> None:
    code = 99
    try:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        stderr = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stderr, 1)
        os.dup2(stderr, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        torch.set_num_threads(1)
        if mark is not None:
            _send_at(at, number, mark, sent)
        from davit.cli import main

        code = main(["train", "digits", *SETTINGS, "--out", str(folder / "run"), "--json"])
        sys.stdout.flush()
    finally:
        os._exit(code)


def _send_at(at: str, number: int, mark: Path, sent: int) -> None:
    """Patch a phase so that this process signals itself there."""
    calls = [0]

    def before(work: Callable) -> Callable:
        def counted(*arguments, **named):
            calls[0] += 1
            if calls[0] == number + 1:
                mark.write_text(str(time.time()))
                os.kill(os.getpid(), sent)
            return work(*arguments, **named)

        return counted

    if at == "start":
        run_module.build_model = before(run_module.build_model)
    elif at == "step":
        Stepper.gradients = before(Stepper.gradients)
    elif at == "evaluation":
        ClassificationMetric.update = before(ClassificationMetric.update)
    else:
        trainer_module.save_point = before(trainer_module.save_point)


def moment(phase: str, rng: random.Random) -> int:
    """A random moment of a phase: a step, or a batch of the evaluation at the end."""
    return {"step": rng.randrange(STEPS), "evaluation": rng.randrange(3)}.get(phase, 0)


def stop_and_resume(folder: Path, phase: str, rng: random.Random) -> dict:
    """SIGTERM to one of two, then the same command again; what happened."""
    stopped = train_on_two(folder, at=phase, number=moment(phase, rng), rank=rng.randrange(2), signal_=signal.SIGTERM)
    points = sorted(p.name for p in (folder / "run").glob("step-*"))
    again = train_on_two(folder)
    return {
        "phase": phase, "codes": stopped.codes, "seconds": round(stopped.seconds, 2), "points": points,
        "codes_again": again.codes, "text": stopped.text,
    }  # fmt: skip
