"""All checks, in a process of their own: what crashes or hangs there is told, and the others go on.

A package that is broken may end the whole process (an instruction that the processor does not know, a library made for
another version), so the process that tells the outcome imports nothing but this.
"""

import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from typing import IO, Any

from davit.inference.doctor.check import Check, failed

# In the order of the answer: what all need first, what takes longest last. The module and function of each.
TOPICS = {
    "versions": ("packages", "check_versions"),
    "machine": ("machine", "check_machine"),
    "graphics": ("graphics", "check_graphics"),
    "cache": ("cache", "check_cache"),
    "pictures": ("pictures", "check_pictures"),
    "native": ("native", "check_native"),
    "model": ("self_test", "check_model"),
    "extras": ("packages", "check_extras"),
}
PATIENCE = 300.0  # seconds without a word, after which a check counts as hanging; compiling the engine takes some ten
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from davit.inference.doctor.examine import answer; answer(sys.argv[2:])"
)


def examine(topics: Sequence[str], patience: float = PATIENCE) -> Iterator[tuple[str, list[Check]]]:
    """Yield the checks of each topic as they are done; nothing that is wrong here ends it.

    Args:
        topics: some of `TOPICS`.
        patience: seconds that a check may take.
    """
    left = list(topics)
    while left:
        for topic, checks in _examined(tuple(left), patience):
            left.remove(topic)
            yield topic, checks


def _examined(topics: Sequence[str], patience: float) -> Iterator[tuple[str, list[Check]]]:
    """The topics that one process gets through; the last of them it may not have survived."""
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, "-c", _CODE, json.dumps(sys.path), *topics]
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL)
        except OSError as error:
            yield topics[0], [failed("process", error)]
            return
        assert process.stdout is not None
        watch = _Watch(process, patience)
        finished: list[list[Check]] = [[]]  # of each topic, the last of them under way
        with process.stdout:
            for line in process.stdout:
                watch.again()
                with suppress(ValueError, TypeError):  # not a line of ours
                    said: Any = json.loads(line)
                    if said is None:
                        yield topics[len(finished) - 1], finished[-1]
                        finished.append([])
                    else:
                        finished[-1].append(Check(**said))
        code = process.wait()
        watch.stop()
        if len(finished) <= len(topics):
            yield topics[len(finished) - 1], [*finished[-1], _died(code, watch.hung, patience, errors)]


class _Watch:
    """Ends a process that says nothing for too long."""

    def __init__(self, process: "subprocess.Popen[bytes]", patience: float) -> None:
        self.hung = False
        self._process, self._patience = process, patience
        self._start()

    def _start(self) -> None:
        self._timer = threading.Timer(self._patience, self._end)
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> None:
        self.hung = True
        self._process.kill()

    def again(self) -> None:
        self._timer.cancel()
        self._start()

    def stop(self) -> None:
        self._timer.cancel()


def _died(code: int, hung: bool, patience: float, errors: IO[bytes]) -> Check:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    if hung:
        told = f"no answer for {patience:.0f} s"
    elif code < 0:
        name = signal.Signals(-code).name if -code in {number.value for number in signal.Signals} else f"signal {-code}"
        told = f"the process was ended by {name}"
    else:
        told = f"the process ended with exit code {code}"
    places = [line.strip() for line in lines if line.startswith("  File ")][:1]
    said = " | ".join([*places, *lines[-1:]] if lines else [])[:300]
    remedy = "reinstall what is named, or leave it out; the rest of these checks was not made"
    return Check(level="problem", name="process", told=f"{told}: {said}" if said else told, remedy=remedy)


def answer(topics: Sequence[str]) -> None:
    """Make the checks in this process, and write each as a line of JSON; a line `null` ends a topic."""
    faulthandler.enable()
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what packages print goes elsewhere

    def say(check: Check | None) -> None:
        stream.write(json.dumps(check and check.to_json()) + "\n")
        stream.flush()

    for topic in topics:
        module, function = TOPICS[topic]
        try:
            checks: Callable[[], Iterator[Check]] = getattr(import_module(f"davit.inference.doctor.{module}"), function)
            for check in checks():
                say(check)
        except (Exception, SystemExit) as error:  # whatever is missing or broken
            say(failed(topic, error, "see the versions above, and reinstall what is named"))
        say(None)
    stream.flush()
    os._exit(0)  # broken packages crash at exit, too
