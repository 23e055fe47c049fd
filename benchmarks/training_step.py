"""A training step of davit_tiny beside timm's model: time in turns, and peak memory.

    python benchmarks/training_step.py [--batch 16] [--size 224] [--rounds 7] [--precision fp32] [--out FILE]

A step is forward, cross-entropy, backward, gradient clipping and AdamW, the same code for all. timm's model runs as it
is, compiled, and with its fused attention off, and the fastest of these counts; ours plain, compiled and with gradient
checkpointing. Images lie channels last, as our loader hands them out. Memory is the peak of torch's own allocations.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import timm
import torch
from torch import nn

import davit
from allocations import allocated
from davit.train.device import pick_device, pick_precision
from davit.train.optimizer import OptimizerConfig, make_optimizer
from davit.train.run import environment

VARIANTS = ("ours", "ours, compiled", "ours, checkpointing", "timm", "timm, compiled", "timm, unfused")


def build(name: str, device: torch.device) -> nn.Module:
    """Build one of VARIANTS."""
    torch.manual_seed(0)
    if name.startswith("ours"):
        model: nn.Module = davit.create_model("davit_tiny", gradient_checkpointing="checkpointing" in name)
    else:
        timm.layers.set_fused_attn("unfused" not in name)
        model = timm.create_model("davit_tiny")
    return model.to(device).train()


def stepper(name: str, options: argparse.Namespace) -> Callable[[], None]:
    """A function that takes one step."""
    device = pick_device("auto")
    precision = pick_precision(options.precision, device)
    model = build(name, device)
    forward = torch.compile(model) if "compiled" in name else model
    optimizer = make_optimizer(model, OptimizerConfig())
    images = torch.randn(options.batch, 3, options.size, options.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.randint(1000, (options.batch,), device=device)

    def step() -> None:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            loss = nn.functional.cross_entropy(forward(images), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def time_in_turns(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each variant, round after round."""
    steps = {name: stepper(name, options) for name in options.variants}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(options.rounds + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if round_ >= 2:  # compiling and warming up
                found[name].append(time.perf_counter() - started)
    return found


def peak_memory(name: str, options: argparse.Namespace) -> float:
    """MiB at the peak of the second step, all that the allocator handed out for model, moments and step."""

    def two_steps() -> None:
        step = stepper(name, options)
        step()
        step()

    if not torch.cuda.is_available():
        return allocated(two_steps) / 2**20
    torch.cuda.reset_peak_memory_stats()
    two_steps()
    return torch.cuda.max_memory_allocated() / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    memory = {name: round(peak_memory(name, options)) for name in options.variants}
    times = time_in_turns(options)
    timms = [name for name in times if name.startswith("timm")]
    fastest = min(timms, key=lambda name: statistics.median(times[name]))
    least = min(memory[name] for name in timms)
    rows: list[dict[str, Any]] = []
    for name, seconds in times.items():
        ratios = sorted(theirs / mine for theirs, mine in zip(times[fastest], seconds, strict=True))
        rows.append(
            {
                "name": name,
                "seconds": [round(v, 4) for v in (min(seconds), statistics.median(seconds), max(seconds))],
                "speed_over_fastest_timm": [round(v, 3) for v in (ratios[0], statistics.median(ratios), ratios[-1])],
                "peak_mib": memory[name],
                "memory_over_least_timm": round(memory[name] / least, 3),
            }
        )
        print(json.dumps(rows[-1]))
    print(f"fastest timm: {fastest}")
    settings = {"batch": options.batch, "size": options.size, "rounds": options.rounds, "precision": options.precision}
    if options.out:
        report = {"settings": settings, "fastest_timm": fastest, "environment": environment(), "rows": rows}
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
