"""The native engine beside our eager model and timm's: forwards in turns, as shares of the machine's matrix product.

    python benchmarks/native_engine.py [--variant davit_tiny] [--cases 8x224 1x224] [--rounds 9] [--threads 2]
        [--clock wall|cpu] [--beside FLAGS] [--images 4] [--out FILE]

fp32, random weights, the same images for all. A round times a 2,048-wide product, then every model once for each case;
the first round warms up. Ratios are medians over rounds of the ratio inside a round, so that slow spells of the machine
touch both sides. On a machine with other work, `--clock cpu --threads 1` counts the processor's time only.
`--beside=-DDAVIT_PAIRED=0` adds a second engine, compiled with these flags, too: there, without products in pairs.
Prints the error against float64, too: the engine's over the eager model's, in the root mean square over images.
"""

import argparse
import copy
import ctypes
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from davit.inference.backends.native import build
from davit.inference.backends.native.engine import NativeEngine, declare
from davit.inference.backends.native.weights import native_weights
from davit.models.classifier import Classifier
from davit.models.complexity import count_macs
from davit.models.create import create_model
from gram import engine_of
from record import write_record

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def timms(variant: str) -> nn.Module | None:
    """The same architecture by timm, or None where there is none."""
    try:
        import timm
    except ImportError:
        return None
    return timm.create_model(variant).eval() if variant in timm.list_models("davit*") else None


def measure(
    models: dict[str, Callable[[Tensor], Any]], cases: list[tuple[int, int]], rounds: int, clock: str
) -> tuple[list[float], dict[tuple[str, int, int], list[float]]]:
    """Floating-point operations per second of the product in each round, and seconds of each model and case."""

    def seconds(run: Callable[[], object]) -> float:
        started = CLOCKS[clock]()
        run()
        return CLOCKS[clock]() - started

    square = torch.randn(2048, 2048)
    images = {case: torch.randn(case[0], 3, case[1], case[1]) for case in cases}
    peaks: list[float] = []
    times: dict[tuple[str, int, int], list[float]] = {(name, *case): [] for name in models for case in cases}
    for round_ in range(rounds + 1):
        peak = 2 * 2048**3 / min(seconds(lambda: square @ square) for _ in range(3))
        found = {
            key: seconds(lambda name=key[0], case=key[1:]: models[name](images[case]))  # type: ignore[bad-index]
            for key in times
        }
        if round_:
            peaks.append(peak)
            for key, spent in found.items():
                times[key].append(spent)
    return peaks, times


def engine_with(flags: str, model: Classifier, threads: int) -> NativeEngine:
    """The engine compiled with more flags than for its users."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "engine.so"
        build.compile_library(build.SOURCE / "engine.cpp", path, build.find_compiler(), [*build.FLAGS, *flags.split()])
        library = ctypes.CDLL(str(path))
    declare(library)
    return engine_of(library, native_weights(model), threads)


def relative_error(model: Classifier, engine: NativeEngine, size: int, images: int) -> float:
    """Error of the engine's logits against float64 over that of the eager model's, over so many images."""
    exact = copy.deepcopy(model).double()
    ours = plain = 0.0
    for _ in range(images):
        image = torch.randn(1, 3, size, size)
        wanted = exact(image.double())
        ours += float((engine(image) - wanted).square().mean())
        plain += float((model(image) - wanted).square().mean())
    return (ours / plain) ** 0.5


def main() -> None:
    """Time all cases, print a line for each, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="davit_tiny")
    parser.add_argument("--cases", nargs="+", default=["8x224", "1x224", "1x448"], help="batch x image side")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--beside", metavar="FLAGS", help="another engine, compiled with these")
    parser.add_argument("--images", type=int, default=4, help="for the error; the eager model's varies between images")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [(int(batch), int(side)) for batch, side in (case.split("x") for case in options.cases)]
    model = create_model(options.variant).eval()
    engine = NativeEngine(model, options.threads)
    models: dict[str, Callable[[Tensor], Any]] = {"native": engine, "eager": model}
    if options.beside:
        models["beside"] = engine_with(options.beside, model, options.threads)
    if (other := timms(options.variant)) is not None:
        models["timm"] = other
    with torch.inference_mode():
        peaks, times = measure(models, cases, options.rounds, options.clock)
        errors = {
            side: relative_error(model, engine, side, options.images) for side in sorted({side for _, side in cases})
        }
    rows = []
    for batch, side in cases:
        operations = 2 * batch * count_macs(model.config.backbone, side, side, model.config.num_classes)
        native = times["native", batch, side]
        row: dict[str, object] = {"batch": batch, "side": side, "error_over_eager": round(errors[side], 2)}
        for name in models:
            spent = times[name, batch, side]
            row[f"{name}_milliseconds"] = [
                round(1e3 * x, 2) for x in (min(spent), statistics.median(spent), max(spent))
            ]
            shares = [operations / x / peak for x, peak in zip(spent, peaks, strict=True)]
            row[f"{name}_share_of_peak"] = round(statistics.median(shares), 3)
            if name != "native":
                ratios = [theirs / ours for theirs, ours in zip(spent, native, strict=True)]
                row[f"times_{name}"] = round(statistics.median(ratios), 2)
        rows.append(row)
        print(json.dumps(row))
    gigaflops = [round(x / 1e9, 1) for x in (min(peaks), statistics.median(peaks), max(peaks))]
    report = {"variant": options.variant, "clock": options.clock, "peak_gflops": gigaflops, "rows": rows}
    write_record(report, options.out)


if __name__ == "__main__":
    main()
