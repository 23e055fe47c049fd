"""What a run tells: metrics.jsonl for programs, a progress bar on a terminal, plain lines elsewhere."""

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from davit.atomic import atomic_write
from davit.structures import Batch
from davit.train.board import Board


class RunLog:
    """Records of one run.

    A resumed run drops the records of steps that it will do again, so that the file has neither gaps nor repeats.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        last_step: int,
        batch_size: int,
        *,
        quiet: bool = False,
        board: bool = False,
    ) -> None:
        """Continue the records in `folder` from `first_step`, with `board` for TensorBoard, too.

        A quiet log, of a process but the first, writes none.
        """
        self.path = folder / "metrics.jsonl"
        self.history = [record for record in read_history(folder) if record["step"] <= first_step]
        self.quiet = quiet
        if not quiet:
            with atomic_write(self.path) as file:
                file.write("".join(map(_line, self.history)).encode())
        self.batch_size = batch_size
        self.terminal = sys.stderr.isatty() and not quiet
        self.bar = tqdm(
            total=(last_step) * batch_size,
            initial=first_step * batch_size,
            unit="image",
            unit_scale=True,
            disable=not self.terminal,
            dynamic_ncols=True,
        )
        self.board = Board(folder, first_step) if board and not quiet else None
        self.last_step = last_step
        self.started = time.monotonic()
        self.first_step = first_step

    def step(self) -> None:
        """Move the bar by one step."""
        self.bar.update(self.batch_size)

    def record(self, values: dict[str, Any]) -> None:
        """Append a record to metrics.jsonl and show it."""
        self.history.append(values)
        if self.quiet:
            return
        with self.path.open("a") as file:
            file.write(_line(values))
        if self.board:
            self.board.record(values)
        shown = "  ".join(f"{key} {_short(value)}" for key, value in values.items() if key != "step")
        if self.terminal:
            self.bar.set_postfix_str(shown)
        else:
            print(f"step {values['step']}/{self.last_step}  {shown}{self._time_left(values['step'])}", file=sys.stderr)

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        self.bar.write(text, file=sys.stderr) if self.terminal else print(text, file=sys.stderr)

    def close(self) -> None:
        """End the bar."""
        self.bar.close()
        if self.board:
            self.board.close()

    def _time_left(self, step: int) -> str:
        done = step - self.first_step
        if done <= 0 or step >= self.last_step:
            return ""
        seconds = (time.monotonic() - self.started) / done * (self.last_step - step)
        return f"  {seconds / 60:.1f} min left"


class Window:
    """Sums since the last record; a resume point carries them, so that no record covers half of its steps."""

    def __init__(self, before: dict[str, float] | None = None) -> None:
        """Start the clock, on top of the sums that an interrupted run came to."""
        self.started = time.monotonic()
        self.sums = {"loss": 0.0, "steps": 0, "images": 0, "waited": 0.0, "seconds": 0.0} | (before or {})

    def wait_for(self, batches: Iterator[Batch]) -> Batch:
        """Take the next batch and count the time that it takes."""
        asked = time.monotonic()
        batch = next(batches)
        self.sums["waited"] += time.monotonic() - asked
        return batch

    def add(self, loss: float, images: int) -> None:
        """Count a step."""
        if math.isfinite(loss):
            self.sums["loss"] += loss
            self.sums["steps"] += 1
        self.sums["images"] += images

    def state(self) -> dict[str, float]:
        """The sums up to now."""
        return self.sums | {"seconds": self.sums["seconds"] + time.monotonic() - self.started}

    def summary(self) -> dict[str, float | None]:
        """Mean loss, images per second, and the share of the time spent waiting for data."""
        sums = self.state()
        return {
            "loss": round(sums["loss"] / sums["steps"], 6) if sums["steps"] else None,
            "images_per_second": round(sums["images"] / sums["seconds"], 2),
            "loader_share": round(sums["waited"] / sums["seconds"], 4),
        }


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The records of a run so far; a line cut short by a crash is left out."""
    path = folder / "metrics.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
