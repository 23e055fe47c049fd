"""How far a long work has come: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType

EVERY = 30.0  # seconds between lines


class Progress:
    """Call it with how much was done since the last call."""

    def __init__(self, what: str, unit: str, total: int = 0) -> None:
        """Begin `what`, counted in `unit`; set the total later with `start`, if it is not known yet."""
        from tqdm import tqdm

        self.what, self.unit, self.total, self.done = what, unit, total, 0
        self.started = self.told = time.monotonic()
        self.bar = tqdm(desc=what, total=total or None, unit=unit, unit_scale=unit == "B", disable=None, leave=False)

    def start(self, total: int) -> None:
        """Set the total and the clock."""
        self.total, self.bar.total = total, total
        self.started = self.told = time.monotonic()

    def __call__(self, done: int) -> None:
        """Count."""
        self.done += done
        self.bar.update(done)
        now = time.monotonic()
        if self.bar.disable and now - self.told >= EVERY:
            self.told = now
            left = (now - self.started) / max(self.done, 1) * (self.total - self.done)
            print(
                f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {left / 60:.1f} min left", file=sys.stderr
            )

    def __enter__(self) -> "Progress":
        """Show the bar."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self.bar.close()
