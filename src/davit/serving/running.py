"""A server process: its socket, its signals, and its end."""

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType

from uvicorn import Config, Server

from davit.inference.memory import give_back, keep_little
from davit.serving.app import create_app
from davit.serving.protocol import TimedProtocol, timed_protocol
from davit.serving.reload import Loader
from davit.serving.served import ModelSource
from davit.serving.service import Service

_log = logging.getLogger(__name__)
_QUIET = 0.2  # seconds between the last accepted connection and the end of idle ones
_BACKLOG = 2048  # connections that the system makes before they are accepted
_TICKS = 100  # of a tenth of a second, after which freed memory is given back to the system
_SWITCH = 0.001  # seconds that a thread of Python keeps others waiting; the usual 5 ms would stall computing threads


class GracefulServer(Server):
    """Asked to stop, it first tells everyone so, then answers what it has accepted, then goes."""

    def __init__(self, config: Config, service: Service) -> None:
        """Serve an application.

        Attributes:
            signal: what ended it; 0 where it ended by itself.
        """
        super().__init__(config)
        self.signal = 0
        self._service = service
        self._asked = 0.0
        self._told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop being ready at once; a second Ctrl-C ends the process where it stands."""
        if self._service.stopping:
            if sig == signal.SIGINT:
                signal.signal(sig, signal.SIG_DFL)
                signal.raise_signal(sig)
            return
        self.signal = sig
        self._service.stopping = True
        self._asked = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether all is said and done."""
        await super().on_tick(counter)
        self._service.metrics.connections.set(len(self.server_state.connections))
        if counter % _TICKS == 0:
            await asyncio.to_thread(give_back)
        if self._service.stopping and not self._told:
            self._told = True
            _log.info("asked to stop: new requests are refused")
        if self.should_exit:
            return True
        if not self._asked:
            return False
        waited = time.monotonic() - self._asked
        limits = self._service.limits
        waiting = any(model.waiting for model in self._service.models.values())
        return waited >= limits.stop_seconds or (waited >= limits.drain_seconds and not waiting)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, answer those there are, and end."""
        last = _accept_last(sockets or [])
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in last:
            await loop.connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(_QUIET)
        await super().shutdown(sockets)
        if self.signal:
            _log.info("ended")

    def _protocol(self) -> asyncio.Protocol:
        make: type[TimedProtocol] = self.config.http_protocol_class  # type: ignore[bad-assignment]
        return make(self.config, self.server_state, {})


def _accept_last(sockets: list[socket.socket]) -> list[socket.socket]:
    """Take the connections that the system has made already: closing their socket would reset them."""
    found: list[socket.socket] = []
    for taken in sockets:
        with suppress(BlockingIOError):
            for _ in range(_BACKLOG):  # all at once: who is answered may come again at once, without an end
                found.append(taken.accept()[0])
    return found


def serve(
    service: Service,
    loader: Callable[[], Loader],
    sources: list[ModelSource],
    taken: socket.socket,
    *,
    keys: Sequence[str] = (),
    tell: Callable[[str], None],
    ready: Callable[[], None],
) -> int:
    """Serve until a signal comes, and return it (0 for none).

    Args:
        service: answers.
        loader: made in the event loop; loads the models.
        sources: of the models.
        taken: a bound socket.
        keys: see `create_app`.
        tell: called with lines about loading.
        ready: called once when all models are there.

    Raises:
        ValueError: a model cannot be used.
        OSError: a file cannot be read.
    """
    limits = service.limits
    config = Config(
        create_app(service, keys),
        http=timed_protocol(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=int(limits.idle_seconds) + 1,
        timeout_graceful_shutdown=1,
    )
    server = GracefulServer(config, service)
    keep_little()
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH)
    try:
        return asyncio.run(_run(server, service, loader, sources, taken, tell, ready))
    finally:
        sys.setswitchinterval(usual)


async def _run(
    server: GracefulServer,
    service: Service,
    loader: Callable[[], Loader],
    sources: list[ModelSource],
    taken: socket.socket,
    tell: Callable[[str], None],
    ready: Callable[[], None],
) -> int:
    failed: list[BaseException] = []
    made = loader()

    async def work() -> None:
        try:
            await made.load(sources, tell)
            ready()
            await made.watch()
        except Exception as error:
            failed.append(error)
            server.should_exit = True

    with suppress(NotImplementedError, AttributeError, ValueError):  # no such signal, or not the main thread
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, made.reload)
    loading = asyncio.ensure_future(work())
    await server.serve(sockets=[taken])
    loading.cancel()
    with suppress(asyncio.CancelledError):
        await loading
    for model in service.models.values():
        await model.close()
    if failed:
        raise failed[0]
    return server.signal
