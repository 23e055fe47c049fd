"""From the moment a request is accepted: answered, or dropped for its client left or its deadline passed."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from davit.serving.batcher import Batcher, Call
from davit.serving.errors import ClientGoneError, ProblemError
from davit.serving.limits import Hold
from davit.serving.served import ServedModel

T = TypeVar("T")


async def accept(
    request: Request,
    model: ServedModel,
    batcher: Batcher,
    images: int,
    *,
    patience: float,
    hold: Hold,
    work: Callable[[Call], Coroutine[Any, Any, T]],
) -> T:
    """Take a request in and do its work; whatever ends it, its place in the queue is free again.

    Args:
        request: its body has been read.
        model: that it asks.
        batcher: of the model, in whose queue it takes room.
        images: that it brings.
        patience: seconds that it has.
        hold: is to hold its prepared pictures.
        work: is given the call, and stops where `call.wanted()` says no.

    Raises:
        ProblemError: no room, the deadline passed, or what the work raises.
        ClientGoneError: the client left.
    """
    batcher.check(images, patience)
    hold.add(images * model.bytes_of_image())
    call = Call(deadline=time.monotonic() + patience)
    batcher.pending += images
    done, gone = asyncio.ensure_future(work(call)), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({done, gone}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return done.result()
        if gone.done():
            raise ClientGoneError
        raise ProblemError(
            "deadline_exceeded", f"no answer within {patience:g} s: send less at once, or give it more time"
        )
    finally:
        call.dropped = True
        batcher.pending -= images
        for task in (done, gone):
            task.add_done_callback(_seen)
            task.cancel()


async def _gone(request: Request) -> None:
    """Return once the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _seen(task: "asyncio.Future[Any]") -> None:
    """Take note of an error that came after its request had ended, or asyncio would report it."""
    if not task.cancelled():
        task.exception()
