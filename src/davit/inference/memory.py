"""Memory of a fresh process that opens one model and computes: what ran before would be counted otherwise."""

import ctypes
import gc
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CALLS = 3  # while memory is watched

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT = 4 << 20  # bytes at the end of a heap; what is larger is mapped by itself


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a process has resident: Python and PyTorch, weights, activations.

    Attributes:
        imported: before the model is opened.
        opened: once it is ready, what opening left over given back.
        peak: the most while it computes.
        on_card: the most that tensors take on the graphics card while it computes; None on the CPU.
    """

    imported: int
    opened: int
    peak: int
    on_card: int | None = None


def available_memory() -> float:
    """Bytes that this process may still take, as far as the system says."""
    available = math.inf
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = min(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    with suppress(OSError, ValueError):  # "max" where there is no limit; what is in use includes caches that would go
        available = min(available, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return available


def ask(module: str, question: object, what: str) -> Memory | None:
    """Run a module in a fresh process, which prints what `answer` makes.

    Args:
        module: its name; it takes the question as its only argument.
        question: JSON values.
        what: of which memory it is, for errors.

    Returns:
        What it took; None where the system does not tell (Linux does).

    Raises:
        ValueError: the process failed, as for want of memory.
    """
    if not _CLEAR.exists():
        return None
    command = [sys.executable, "-P", "-m", module, json.dumps(question)]  # -P: not this folder's modules
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ValueError(f"{what}: measuring its memory failed: {said}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Memory(**found) if found else None


def answer(memory: Memory | None) -> None:
    """Print what `ask` reads."""
    print(json.dumps(memory and asdict(memory)))


def keep_little() -> None:
    """Have this process keep at most some MiB of freed memory at the end of each of glibc's heaps.

    By itself glibc comes to keep 64 MiB for each of its heaps, of which there are several for each processor, once
    large pictures were freed; `malloc_trim` leaves these ends alone.
    """
    with suppress(AttributeError, OSError):  # not all C libraries have it
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _KEPT)
        mallopt(_TRIM_THRESHOLD, _KEPT)


def give_back() -> None:
    """Return freed memory to the system.

    glibc keeps whole pages between pieces that are in use; with pictures of many sizes in many threads these add up.
    See `keep_little` for what lies behind all pieces.
    """
    with suppress(AttributeError, OSError):  # not all C libraries have it
        ctypes.CDLL(None).malloc_trim(0)


def watch(open_model: Callable[[], Callable[[], object]], device: "torch.device") -> Memory | None:
    """Open a model in this process, which has computed nothing yet, and call it three times.

    Args:
        open_model: returns the call.
        device: where it computes.

    Returns:
        What it took; None where the system does not forget an earlier peak.
    """
    imported = _resident("VmRSS")
    call = open_model()
    gc.collect()
    give_back()
    before = _resident("VmRSS")
    try:
        _CLEAR.write_text("5")  # forgets the peak, which opening may have made; see proc(5)
    except OSError:  # some containers refuse it
        return None
    on_card = device.type == "cuda"
    if on_card:
        _cuda().reset_peak_memory_stats(device)
    for _ in range(CALLS):
        call()
    return Memory(
        imported=imported,
        opened=before,
        peak=_resident("VmHWM"),
        on_card=_cuda().max_memory_allocated(device) if on_card else None,
    )


def _cuda() -> ModuleType:
    import torch  # not above: the doctor counts memory where torch cannot be loaded

    return torch.cuda


def _resident(field: str) -> int:
    """Bytes; `getrusage` would count what the parent had when it made this process."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found
    return 1024 * int(found[1])
