"""A small process that holds the address of a server, and starts the server anew when it is killed or crashes."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

SHORT = 10.0  # seconds; after several lives as short as that in a row the next waits a little
MOST_UNREADY = 5  # lives one after the other that ended before the server was ready, then no more are tried
LONGEST_PAUSE = 8.0  # seconds between two short lives
_MEANT = (0, 2, 130, 143)  # exit codes of a server that ended as it should, or that nobody can start
_PARENT_DEATH_SIGNAL = 1  # of prctl(2)
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if hasattr(signal, "SIGHUP") else ()


class Life:
    """A server's life, as the server sees it."""

    def __init__(self, told: int) -> None:
        """Hold the end of a pipe whose other end the parent has."""
        self._told = told

    def ready(self) -> None:
        """Tell the parent that the server can answer: it may die soon, but it can live. A second call does nothing."""
        told, self._told = self._told, -1
        if told >= 0:
            with suppress(BrokenPipeError):
                os.write(told, b"!")
            os.close(told)


def keep_alive(tell: Callable[[str], None]) -> int | Life:
    """Fork: the child goes on and serves; the parent waits, and forks again when the child was killed or crashed.

    To be called with the socket bound, before any thread is there and before PyTorch is imported: connections that are
    made while there is no child wait in the socket, and every child begins as fresh as the first. SIGTERM, SIGINT and
    SIGHUP to the parent are the child's; a child whose parent is killed is asked to stop (on Linux).

    Args:
        tell: called in the parent with a line for each death.

    Returns:
        In the child its life, which is to be told when it is ready. In the parent, once a child ended by itself or as
        it was asked to, its exit code; 1 where five in a row died before they were ready.

    Raises:
        ValueError: the system forks no processes.
    """
    if not hasattr(os, "fork"):
        raise ValueError("--restart needs a system that forks processes, such as Linux or macOS")
    return _Keeper().keep(tell)


class _Keeper:
    def __init__(self) -> None:
        self.child = 0
        self.asked = threading.Event()
        self.signal = 0

    def keep(self, tell: Callable[[str], None]) -> int | Life:
        before = {number: signal.signal(number, self.forward) for number in _FORWARDED}
        short = unready = 0
        while not self.asked.is_set():
            hears, told = os.pipe()
            signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)  # until each knows which of both it is
            self.child = os.fork()
            if not self.child:
                os.close(hears)
                for number, handler in before.items():
                    signal.signal(number, handler)
                _leave_group()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
                return Life(told)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
            os.close(told)
            began = time.monotonic()
            code = os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
            died, self.child = self.child, 0
            unready = 0 if _heard(hears) else unready + 1
            if code in _MEANT or self.asked.is_set():
                return code if code >= 0 else 128 - code
            short = short + 1 if time.monotonic() - began < SHORT else 0
            cause = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            what = f"the server, process {died}, {cause}"
            if unready == MOST_UNREADY:
                tell(f"{what}: the {MOST_UNREADY}th time before it was ready, so it is not started again")
                return 1
            tell(f"{what}: it is started anew")
            self.asked.wait(min(LONGEST_PAUSE, 2.0 ** (short - 2)) if short > 1 else 0)
        return 130 if self.signal == signal.SIGINT else 0

    def forward(self, number: int, frame: FrameType | None) -> None:
        if number != getattr(signal, "SIGHUP", None):
            self.signal = number
            self.asked.set()
        if self.child:
            with suppress(ProcessLookupError):
                os.kill(self.child, number)


def _heard(pipe: int) -> bool:
    """Whether a child that is no more wrote into a pipe, which is closed."""
    os.set_blocking(pipe, False)
    try:
        return bool(os.read(pipe, 1))
    except BlockingIOError:  # a process of the child still holds its end
        return False
    finally:
        os.close(pipe)


def _leave_group() -> None:
    """Have Ctrl-C reach the parent alone, which passes it on, and the end of the parent reach this process."""
    os.setpgid(0, 0)
    with suppress(AttributeError, OSError):  # Linux has it
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
