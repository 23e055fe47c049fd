"""How much memory is left."""

import math
from contextlib import suppress
from pathlib import Path


def available_memory() -> float:
    """Bytes that this process may still take, as far as the system says; infinity where it says nothing."""
    available = math.inf
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = min(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    with suppress(OSError, ValueError):  # "max" where there is no limit; what is in use includes caches that would go
        available = min(available, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return available
