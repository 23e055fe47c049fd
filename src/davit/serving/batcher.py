"""Pictures of many requests, computed together: those of one size, and never padded for another's sake."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from davit.inference.backends.protocol import Backend
from davit.serving.errors import ProblemError

_log = logging.getLogger(__name__)
_MEMORY = 0.2  # weight of the last batch in the mean time of an image
STUCK = 120.0  # seconds of one batch after which the process had better be started anew
_SHARE = 0.5  # of its deadline that a request may be expected to wait; the rest is for errors of that expectation


@dataclass(eq=False, kw_only=True)
class Call:
    """One request on its way.

    Attributes:
        deadline: on the monotonic clock; what is not computed by then is not wanted.
        accepted: when, on the same clock.
        dropped: nobody waits for it any more.
    """

    deadline: float
    accepted: float = field(default_factory=time.monotonic)
    dropped: bool = False

    def wanted(self) -> bool:
        """Whether its work is still worth doing; for any thread."""
        return not self.dropped and time.monotonic() < self.deadline


class Observer(Protocol):
    """Is told what was computed; called in the computing thread."""

    def batch(self, images: int, seconds: float, *, failed: bool) -> None:
        """A batch was computed, or failed."""
        ...

    def dropped(self, images: int) -> None:
        """So many were waited for by nobody and not computed."""
        ...


@dataclass(eq=False, kw_only=True)
class _Work:
    """What one thread does at a time: rows of a batch, or a function of its own."""

    key: Hashable
    call: Call
    future: "asyncio.Future[Any]"
    run: Callable[[list["_Work"]], Sequence[Any]]
    pixels: Tensor | None = None
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """One thread that computes whatever waits, the longest waiting first, as many of its kind at once as there are.

    A batch is never waited for: under light load a picture is computed at once and alone, under heavy load batches
    fill while the one before is computed.

    Attributes:
        pending: images accepted and not yet answered; for the event loop's thread.
    """

    def __init__(
        self, name: str, *, batch_size: int, queue: int, observer: Observer, threads: int | None = None
    ) -> None:
        """Start the thread, in an event loop.

        Args:
            name: of the model.
            batch_size: most images computed at once.
            queue: most images accepted and not yet answered.
            observer: is told of each batch.
            threads: of PyTorch and the native engine; None for as many as they take by themselves.
        """
        self.pending = 0
        self._name, self._batch_size, self._queue, self._threads = name, batch_size, queue, threads
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._groups: dict[Hashable, deque[_Work]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = 0.0  # of an image
        self._last_done = 0.0
        self._begun: float | None = None
        self._thread = threading.Thread(target=self._work, name=f"davit-{name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread is there, and not lost in one batch."""
        begun = self._begun
        return self._thread.is_alive() and (begun is None or time.monotonic() - begun < STUCK)

    def expected(self) -> float:
        """Seconds that a picture accepted now is expected to wait."""
        return self.pending * self._seconds

    def check(self, images: int, patience: float) -> None:
        """Refuse images for which there is no room, or not in time.

        Args:
            images: how many.
            patience: seconds that the request has.

        Raises:
            ProblemError: overloaded.
        """
        if self.pending + images > self._queue:
            why = f"{self.pending} images wait for {self._name}, and {self._queue} may"
        elif self.pending and self.expected() > _SHARE * patience:
            why = f"an answer of {self._name} would take about {self.expected():.1f} s"
        else:
            return
        raise ProblemError(
            "overloaded", f"{why}: try again later, or send less", retry_after=min(self.expected() or 1, patience)
        )

    async def compute(self, backend: Backend, pixels: Tensor, call: Call) -> Any:
        """Return the backend's output for one prepared picture (C, H, W), of a batch of 1.

        Raises:
            ProblemError: the backend failed, or the deadline passed before the picture's turn.
        """
        key = (id(backend), pixels.shape)
        try:
            return await self._add(key, call, lambda works: _forward(backend, works), pixels)
        except (ProblemError, asyncio.CancelledError):
            raise
        except Exception as error:  # backends raise what they like
            raise ProblemError(
                "model_failed",
                f"{self._name} could not compute this batch ({type(error).__name__}): try again, and tell whoever runs "
                "the server if it goes on",
            ) from error

    async def run(self, function: Callable[[], Any], call: Call) -> Any:
        """Return what a function makes while nothing else is computed; what it raises comes through.

        Raises:
            ProblemError: the deadline passed before its turn.
        """
        return await self._add(object(), call, lambda _: [function()])

    async def _add(
        self, key: Hashable, call: Call, run: Callable[[list[_Work]], Sequence[Any]], pixels: Tensor | None = None
    ) -> Any:
        work = _Work(key=key, call=call, future=self._loop.create_future(), run=run, pixels=pixels)
        with self._changed:
            self._groups.setdefault(key, deque()).append(work)
            self._changed.notify()
        return await work.future

    async def close(self) -> None:
        """Stop the thread once all that waits is done."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join, 1.0)

    def _work(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._groups or self._closed)
                if not self._groups:
                    return
                works = self._take()
            if works:
                self._compute(works)
            del works  # no pixels are kept until the next batch

    def _take(self) -> list[_Work]:
        """The next batch, without what nobody waits for."""
        key = min(self._groups, key=lambda key: self._groups[key][0].arrived)
        group = self._groups[key]
        works: list[_Work] = []
        gone: list[_Work] = []
        while group and len(works) < self._batch_size:
            work = group.popleft()
            (works if work.call.wanted() else gone).append(work)
        if not group:
            del self._groups[key]
        if gone:
            self._observer.dropped(len(gone))
            error = ProblemError(
                "deadline_exceeded", "the deadline passed before the picture's turn: ask for more time"
            )
            self._tell(gone, [error] * len(gone))
        return works

    def _compute(self, works: list[_Work]) -> None:
        self._begun = started = time.monotonic()
        try:
            outputs = list(works[0].run(works))
            failed = False
        except BaseException as error:  # whatever a backend raises concerns this batch alone, and never the thread
            failed = True
            outputs = [error] * len(works)
            if works[0].pixels is not None:
                _log.error("%s failed on a batch of %d: %r", self._name, len(works), error)
        self._begun, now = None, time.monotonic()
        if works[0].pixels is not None:
            # While there was no pause, from one end to the next: it may be decoding that limits the rate.
            begun = self._last_done if self._last_done > works[0].call.accepted else started
            spent = (now - begun) / len(works)
            self._seconds = spent if not self._seconds else (1 - _MEMORY) * self._seconds + _MEMORY * spent
            self._observer.batch(len(works), now - started, failed=failed)
        self._last_done = now
        self._tell(works, outputs)

    def _tell(self, works: list[_Work], outputs: Sequence[Any]) -> None:
        pairs = list(zip([work.future for work in works], outputs, strict=True))
        try:
            self._loop.call_soon_threadsafe(_deliver, pairs)
        except RuntimeError:  # the loop is closed, and all who waited with it
            return


def _forward(backend: Backend, works: list[_Work]) -> list[Any]:
    outputs = backend(torch.stack([work.pixels for work in works if work.pixels is not None]))
    return [outputs[row : row + 1] for row in range(len(works))]


def _deliver(pairs: list[tuple["asyncio.Future[Any]", Any]]) -> None:
    for future, output in pairs:
        if future.done():  # cancelled, for its client left
            continue
        if isinstance(output, BaseException):
            future.set_exception(output)
        else:
            future.set_result(output)
