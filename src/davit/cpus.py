"""How many CPUs there are for this process."""

import os


def usable_cpus() -> int:
    """Count the CPUs that this process may run on: containers and job systems often leave it some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
