"""uvicorn's HTTP protocol with the timers it lacks: headers, unread bodies and unread answers that never end."""

import asyncio
import json
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from davit.serving.errors import Problem
from davit.serving.limits import Limits

_DRAIN = 2.0  # seconds in which what is left of a refused body is read, so that its client gets to see the answer


class TimedProtocol(H11Protocol):
    """One connection; the class of a server is made by `timed_protocol`.

    Timed are: from a connection or the first byte of a request to the end of its headers; from one request to the next;
    from an answer to the end of a body that nobody wanted; from a full send buffer to one with room. Bodies that are
    wanted the application times itself.
    """

    limits: Limits

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Make a connection; see uvicorn."""
        super().__init__(config, server_state, app_state, _loop)
        self._stage = ""
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self.app = _too_many
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        super().connection_lost(exc)
        self._enter("over")
        self._unset_keepalive_if_required()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Go on to the next request, or to the rest of this one's body."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """The client reads too slowly; for a while that is all right."""
        super().pause_writing()
        if self._writing is None:
            self._writing = self.loop.call_later(self.limits.body_seconds, self._give_up)

    def resume_writing(self) -> None:
        """The client has read on."""
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP as everything else is answered."""
        problem = Problem(type="bad_request", message="this is no HTTP/1.1 request that can be read")
        body = json.dumps(problem.to_json()).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        try:
            for event in (h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=body)):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
        except h11.LocalProtocolError:  # an answer has begun already
            pass
        self.transport.close()

    def _watch(self) -> None:
        """See what is waited for."""
        if self.conn.their_state is h11.IDLE:
            partial = bool(self.conn.trailing_data[0])
            self._enter("headers" if partial or self.cycle is None else "next")
        elif self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            self._enter("rest")
        else:
            self._enter("application")

    def _enter(self, stage: str) -> None:
        """Begin to wait for something else; its timer is not begun anew with each byte."""
        if stage == self._stage:
            return
        self._stage = stage
        if self._reading is not None:
            self._reading.cancel()
        limits = self.limits
        seconds = {"headers": limits.header_seconds, "next": limits.idle_seconds, "rest": _DRAIN}.get(stage)
        self._reading = None if seconds is None else self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        self.transport.abort()


def timed_protocol(limits: Limits) -> type[TimedProtocol]:
    """The protocol of a server with these limits: they are the class's, for uvicorn makes the connections by itself."""
    return type("LimitedProtocol", (TimedProtocol,), {"limits": limits})


async def _too_many(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer where there are too many connections."""
    problem = Problem(type="overloaded", message="too many connections: try again in a second", retry_after=1)
    body = json.dumps(problem.to_json()).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", b"1"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
