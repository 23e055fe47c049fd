"""Where a run computes, and in what precision."""

import torch

from davit.cpus import MOST_WORKERS, usable_cpus, usual_workers


def pick_device(name: str) -> torch.device:
    """Turn `auto` into the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except RuntimeError as error:
        raise ValueError(f"runtime.device={name} cannot be used here: {str(error).splitlines()[0]}") from error


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Turn `auto` into bf16 on a GPU and fp32 elsewhere."""
    if name == "fp16" and device.type != "cuda":
        raise ValueError("runtime.precision=fp16 needs a CUDA GPU: use bf16 or fp32")
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def pick_workers(workers: int, device: torch.device) -> int:
    """Turn -1 into the CPUs that are left over; where two of them compute, a worker beside them only slows both."""
    if workers >= 0:
        return workers
    return usual_workers() if device.type != "cpu" else min(MOST_WORKERS, max(0, usable_cpus() - 2))
