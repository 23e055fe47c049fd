"""How many CPUs there are for this process."""

import os

MOST_WORKERS = 8  # more wait for each other


def usable_cpus() -> int:
    """Count the CPUs that this process may run on: containers and job systems often leave it some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usual_workers() -> int:
    """As many workers as this process may use CPUs, at most eight."""
    return min(MOST_WORKERS, usable_cpus())
