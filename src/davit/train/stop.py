"""Asked to stop, a run finishes its step, saves and goes."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class TrainingStoppedError(Exception):
    """The run was asked to stop, has saved, and will go on when it is started again."""


class StopRequest:
    """Notes SIGTERM and SIGINT while it is entered; a second one acts as it did before."""

    def __init__(self) -> None:
        """Not requested yet."""
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Listen; outside the main thread Python delivers no signals, so there is nothing to hear."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        """Listen no longer."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, self._previous[number])
