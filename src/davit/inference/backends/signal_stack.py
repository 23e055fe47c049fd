"""The stack that signal handlers of this thread run on, kept from libraries that put their own in its place."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """`stack_t` of Linux; see sigaltstack(2)."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Put back, at the end, the signal stack that this thread had at the beginning.

    OpenVINO's plugin for CPUs sets one of its own where it is loaded, and frees it when the last model is gone. If that
    happens on another thread, or after a second plugin was loaded, the freed one stays set, and the next signal that
    Python handles, Ctrl-C or the end of a child, ends the process without a word.
    """
    if sys.platform != "linux":
        yield
        return
    library, before = ctypes.CDLL(None), _Stack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)
