"""Micro-batches, in order, through a loader whose processes may die."""

from collections.abc import Callable, Generator, Iterator

from davit.structures import Batch
from davit.train.log import Window
from davit.train.plan import Plan


class Feed:
    """The micro-batches of a run from a step on, on this process."""

    def __init__(self, plan: Plan, steps: range, per_step: int, say: Callable[[str], None]) -> None:
        """Load the steps given, `per_step` micro-batches each; `say` tells a person what went wrong."""
        self.plan, self.steps, self.per_step, self.say = plan, steps, per_step, say
        self._batches = self._load()

    def batches(self, window: Window, seen: list[Batch]) -> Iterator[Batch]:
        """Hand on the next micro-batches; `window` counts the time that they take, `seen` keeps them."""
        while True:
            batch = window.wait_for(self._batches)
            seen.append(batch)
            yield batch

    def _load(self) -> Generator[Batch]:
        """Load them all. A loader whose process died or hung is started once more, where it stood."""
        taken, restarted = 0, False
        while True:
            done, begun = divmod(taken, self.per_step)
            loader = iter(self.plan.batches(self.steps[done:]))
            try:
                for _ in range(begun):
                    next(loader)
                for batch in loader:
                    taken += 1
                    yield batch
                return
            except RuntimeError as error:
                if restarted or "DataLoader" not in str(error):
                    raise
                restarted = True
                self.say(f"a loader process died or hung ({str(error).splitlines()[0]}); starting it again")
