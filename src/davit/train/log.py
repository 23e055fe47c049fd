"""What a run tells: metrics.jsonl for programs, a progress bar on a terminal, plain lines elsewhere."""

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from davit.structures import Batch


class RunLog:
    """Records of one run.

    A resumed run drops the records of steps that it will do again, so that the file has neither gaps nor repeats.
    """

    def __init__(self, folder: Path, first_step: int, last_step: int, batch_size: int) -> None:
        """Continue the records in `folder` from `first_step`."""
        self.path = folder / "metrics.jsonl"
        self.history = [record for record in read_history(folder) if record["step"] <= first_step]
        self.path.write_text("".join(_line(record) for record in self.history))
        self.batch_size = batch_size
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=(last_step) * batch_size,
            initial=first_step * batch_size,
            unit="image",
            unit_scale=True,
            disable=not self.terminal,
            dynamic_ncols=True,
        )
        self.last_step = last_step
        self.started = time.monotonic()
        self.first_step = first_step

    def step(self) -> None:
        """Move the bar by one step."""
        self.bar.update(self.batch_size)

    def record(self, values: dict[str, Any]) -> None:
        """Append a record to metrics.jsonl and show it."""
        self.history.append(values)
        with self.path.open("a") as file:
            file.write(_line(values))
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

    def _time_left(self, step: int) -> str:
        done = step - self.first_step
        if done <= 0 or step >= self.last_step:
            return ""
        seconds = (time.monotonic() - self.started) / done * (self.last_step - step)
        return f"  {seconds / 60:.1f} min left"


class Window:
    """Sums since the last record."""

    def __init__(self) -> None:
        """Start the clock."""
        self.started = time.monotonic()
        self.loss, self.steps, self.images, self.waited = 0.0, 0, 0, 0.0

    def wait_for(self, batches: Iterator[Batch]) -> Batch:
        """Take the next batch and count the time that it takes."""
        asked = time.monotonic()
        batch = next(batches)
        self.waited += time.monotonic() - asked
        return batch

    def add(self, loss: float, images: int) -> None:
        """Count a step."""
        if math.isfinite(loss):
            self.loss += loss
            self.steps += 1
        self.images += images

    def summary(self) -> dict[str, float | None]:
        """Mean loss, images per second, and the share of the time spent waiting for data."""
        seconds = time.monotonic() - self.started
        return {
            "loss": round(self.loss / self.steps, 6) if self.steps else None,
            "images_per_second": round(self.images / seconds, 2),
            "loader_share": round(self.waited / seconds, 4),
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
