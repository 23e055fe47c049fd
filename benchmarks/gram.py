"""Where channel attention by the Gram matrix wins: the engine with it from so many tokens on, beside one without it.

    python benchmarks/gram.py [--variants davit_tiny davit_base] [--sizes 224 448 896] [--from-tokens 1 2 4]
        [--rounds 7] [--threads 2] [--out FILE]

fp32, random weights, one image. The engine's source is copied and compiled with another GRAM_TOKENS, the tokens for
each channel from which on it takes the Gram matrix; the engines take turns. Ratios are medians over rounds of the time
without over the time with it, with least and most. Beside each size stand the tokens for each channel, by stage.
"""

import argparse
import ctypes
import json
import re
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import torch

from davit.inference.backends.native.build import SOURCE, compile_library, find_compiler
from davit.inference.backends.native.engine import NativeEngine, declare
from davit.inference.backends.native.weights import NativeWeights, native_weights
from davit.models.create import create_model
from record import write_record

NEVER = 1_000_000_000


def library(tokens: int, folder: Path) -> ctypes.CDLL:
    """Compile the engine with another threshold."""
    copied = folder / f"source-{tokens}"
    shutil.copytree(SOURCE, copied)
    workspace = copied / "workspace.hpp"
    changed, found = re.subn(r"GRAM_TOKENS = [^;]+", f"GRAM_TOKENS = {tokens}", workspace.read_text())
    if found != 1:
        raise SystemExit(f"{workspace.name} no longer says GRAM_TOKENS")
    workspace.write_text(changed)
    path = folder / f"engine-{tokens}.so"
    compile_library(copied / "engine.cpp", path, find_compiler())
    loaded = ctypes.CDLL(str(path))
    declare(loaded)
    return loaded


def engine_of(loaded: ctypes.CDLL, weights: NativeWeights, threads: int) -> NativeEngine:
    """An engine of this library in place of the one that is compiled for all."""
    with patch("davit.inference.backends.native.engine._checked_library", return_value=loaded):
        return NativeEngine(weights, threads)


def main() -> None:
    """Time all sizes, print a line for each, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["davit_tiny", "davit_base"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 448, 896])
    parser.add_argument("--from-tokens", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        libraries = {tokens: library(tokens, Path(folder)) for tokens in (*options.from_tokens, NEVER)}
        for variant in options.variants:
            torch.manual_seed(0)
            model = create_model(variant).eval()
            weights = native_weights(model)
            engines = {tokens: engine_of(loaded, weights, options.threads) for tokens, loaded in libraries.items()}
            for side in options.sizes:
                images = torch.randn(1, 3, side, side)
                times: dict[int, list[float]] = {tokens: [] for tokens in engines}
                for round_ in range(options.rounds + 1):
                    for tokens, engine in engines.items():
                        started = time.perf_counter()
                        engine(images)
                        if round_:  # the first one warms up
                            times[tokens].append(time.perf_counter() - started)
                widths = model.config.backbone.widths
                tokens_of = [(side / 2 ** (stage + 2)) ** 2 for stage in range(len(widths))]
                row: dict[str, object] = {
                    "variant": variant,
                    "side": side,
                    "tokens_per_channel": [round(n / width, 2) for n, width in zip(tokens_of, widths, strict=True)],
                    "milliseconds_without": round(1e3 * statistics.median(times[NEVER]), 1),
                }
                for tokens in options.from_tokens:
                    ratios = [without / with_ for without, with_ in zip(times[NEVER], times[tokens], strict=True)]
                    row[f"times_from_{tokens}"] = [
                        round(x, 3) for x in (statistics.median(ratios), min(ratios), max(ratios))
                    ]
                rows.append(row)
                print(json.dumps(row), flush=True)
    write_record({"threads": options.threads, "rows": rows}, options.out)


if __name__ == "__main__":
    main()
