"""Processor, memory and threads."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from davit.cpus import usable_cpus
from davit.inference.backends.native.build import processor_facts
from davit.inference.doctor.check import Check, failed, gibibytes
from davit.inference.memory import available_memory

LEAST_MEMORY = 1 << 30  # what a small model, PyTorch and a decoded picture take


def check_machine() -> Iterator[Check]:
    """What computes, and with how much memory."""
    facts = processor_facts()
    yield _processor(facts)
    yield _instructions(facts)
    yield _memory()
    yield _threads()


def _processor(facts: str) -> Check:
    import platform

    names = [line.partition(":")[2].strip() for line in facts.splitlines() if line.startswith("model name")]
    name = (
        names[0] if names else platform.processor() or platform.machine() or "of a kind that the system does not name"
    )
    cpus, own = os.cpu_count() or 1, usable_cpus()
    told = f"{name}, {cpus} CPUs" + (f", {own} of them for this process" if own < cpus else "")
    return Check(level="ok", name="processor", told=told)


def _instructions(facts: str) -> Check:
    """Those that the native engine has code for; see its `vectors.hpp` and `integers.hpp`."""
    flags = {word for line in facts.splitlines() for word in line.partition(":")[2].split()}
    if "asimd" in flags:
        return Check(level="ok", name="instructions", told="NEON: the native engine computes four numbers at a time")
    if "sse2" not in flags:
        return Check(
            level="ok", name="instructions", told="not told by this system; compilers find them out themselves"
        )
    groups = {
        "AVX2": {"avx2", "fma"} <= flags,
        "AVX-512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= flags,
        "VNNI": bool({"avx512_vnni", "avx_vnni"} & flags),
    }
    there = [name for name, known in groups.items() if known]
    if not there:
        told = "no AVX2: the native engine computes four numbers at a time"
        return Check(level="warning", name="instructions", told=told, remedy="a processor from 2013 on is faster")
    lacking = [name for name, known in groups.items() if not known]
    return Check(
        level="ok", name="instructions", told=", ".join(there) + (f"; no {', no '.join(lacking)}" if lacking else "")
    )


def _memory() -> Check:
    free, total = available_memory(), math.nan
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else ():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
    if math.isinf(free):
        return Check(level="ok", name="memory", told="not told by this system")
    told = f"{gibibytes(free)} free" + ("" if math.isnan(total) else f" of {gibibytes(total)}")
    if free < LEAST_MEMORY:
        remedy = "end other programs, or raise the limit of the container; small variants and --batch-size 1 take least"
        return Check(level="warning", name="memory", told=told, remedy=remedy)
    return Check(level="ok", name="memory", told=told)


def _threads() -> Check:
    try:
        import torch

        threads = torch.get_num_threads()
    except Exception as error:
        return failed("threads", error)
    told = f"{threads} for PyTorch and the native engine"
    if threads > usable_cpus():
        remedy = f"OMP_NUM_THREADS={usable_cpus()}: more threads than CPUs wait for each other"
        return Check(level="warning", name="threads", told=f"{told}, but {usable_cpus()} CPUs", remedy=remedy)
    return Check(level="ok", name="threads", told=told)
