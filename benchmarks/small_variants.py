"""How wide and deep a small DaViT should be: candidates for davit_pico and davit_nano, timed in turns on this machine.

    python benchmarks/small_variants.py [--rounds 7] [--out FILE]

Prints parameters, multiply-adds, images/s at batch 8 and 1, and the share of the machine's own matrix product that each
reaches; fp32, eager, 224 px. The medians of interleaved rounds, with the least and the most.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from davit.models.complexity import count_macs, count_parameters
from davit.models.config import DaViTConfig
from davit.models.davit import DaViT
from davit.train.run import environment

CANDIDATES = {
    "32-64-96-128 (1,1,2,1)": DaViTConfig(widths=(32, 64, 96, 128), depths=(1, 1, 2, 1)),
    "32-64-128-256 (1,1,1,1)": DaViTConfig(widths=(32, 64, 128, 256), depths=(1, 1, 1, 1)),
    "32-64-128-256 (1,1,2,1)": DaViTConfig(widths=(32, 64, 128, 256), depths=(1, 1, 2, 1)),
    "32-64-160-256 (1,1,3,1)": DaViTConfig(widths=(32, 64, 160, 256), depths=(1, 1, 3, 1)),
    "64-128-256-512 (1,1,1,1)": DaViTConfig(widths=(64, 128, 256, 512), depths=(1, 1, 1, 1)),
    "64-128-256-512 (1,1,2,1)": DaViTConfig(widths=(64, 128, 256, 512), depths=(1, 1, 2, 1)),
    "64-128-256-512 (1,1,3,1)": DaViTConfig(widths=(64, 128, 256, 512), depths=(1, 1, 3, 1)),
    "96-192-384-768 (1,1,3,1) = tiny": DaViTConfig(),
}
SIZE = 224


def seconds(run: Callable[[], object]) -> float:
    """Time one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Time all candidates in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    square = torch.randn(2048, 2048)
    models = {name: DaViT(config).eval() for name, config in CANDIDATES.items()}
    times: dict[tuple[str, int], list[float]] = {(name, batch): [] for name in models for batch in (8, 1)}
    peaks = []
    with torch.inference_mode():
        for round_ in range(options.rounds + 1):
            peaks.append(2 * 2048**3 / seconds(lambda: square @ square))
            for (name, batch), found in times.items():
                images = torch.randn(batch, 3, SIZE, SIZE)
                spent = seconds(lambda name=name, images=images: models[name](images))
                if round_:  # the first round warms up
                    found.append(spent)
    rows = []
    for name, config in CANDIDATES.items():
        macs = count_macs(config, SIZE, SIZE, None)
        row: dict[str, object] = {"name": name, "parameters": count_parameters(config, 1000), "macs": macs}
        for batch in (8, 1):
            speeds = sorted(batch / spent for spent in times[name, batch])
            middle = statistics.median(speeds)
            row[f"images_per_second_{batch}"] = [round(speeds[0], 1), round(middle, 1), round(speeds[-1], 1)]
            row[f"share_of_peak_{batch}"] = round(2 * macs * middle / max(peaks), 2)
        rows.append(row)
        print(json.dumps(row))
    if options.out:
        report = {"peak_gflops": round(max(peaks) / 1e9), "environment": environment(), "rows": rows}
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
