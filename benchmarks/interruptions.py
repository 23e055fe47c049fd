"""Runs that are killed, stopped, and robbed of a process, many times; what was lost.

    python benchmarks/interruptions.py [--kills 200] [--stops 20] [--seed 0] [--out FILE]

A very small DaViT on the built-in digits, one thread a process, a save after every step where kills are aimed at saves.
Counts follow; every one but `kills` and `stops` should be 0, or the number that its name implies.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from davit.train.run import environment
from davit.weights.load import load
from kills import kill_often
from runs import states_equal, tiny_recipe
from stops import PHASES, stop_and_resume, train_on_two


def kills(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """SIGKILL at random moments, half of them aimed into a save."""
    return asdict(kill_often(tiny_recipe(runtime__save_minutes="0"), folder, count, seed))


def stops(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """SIGTERM to one of two processes in each phase of a run, then the same command again."""
    rng = random.Random(seed)
    assert train_on_two(folder / "undisturbed").codes == (0, 0)
    expected = load(folder / "undisturbed" / "run" / "model.safetensors").state_dict()
    report: dict[str, Any] = {}
    for phase in PHASES:
        seen = [stop_and_resume(folder / f"{phase}-{i}", phase, rng) for i in range(count)]
        weights = [load(folder / f"{phase}-{i}" / "run" / "model.safetensors").state_dict() for i in range(count)]
        report[phase] = {
            "stops": count,
            "exit_codes_not_143": sum(tuple(one["codes"]) != (143, 143) for one in seen),
            "without_checkpoint": sum(not one["points"] for one in seen),
            "resumes_that_failed": sum(tuple(one["codes_again"]) != (0, 0) for one in seen),
            "final_weights_that_differ": sum(not states_equal(expected, state) for state in weights),
            "longest_seconds": max(one["seconds"] for one in seen),
        }
        print(phase, report[phase], file=sys.stderr)
    return report


def losses(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """SIGKILL to one of two processes: how long the other waits, then the same command again."""
    rng = random.Random(seed)
    seen = [
        train_on_two(
            folder / str(i), at="step", number=rng.randrange(30), rank=rng.randrange(2), signal_=signal.SIGKILL
        )
        for i in range(count)
    ]
    again = [train_on_two(folder / str(i)) for i in range(count)]
    return {
        "losses": count,
        "exit_codes_not_1": sum(sorted(one.codes) != [-9, 1] for one in seen),
        "longest_seconds": round(max(one.seconds for one in seen), 2),
        "resumes_that_failed": sum(one.codes != (0, 0) for one in again),
    }


def main() -> None:
    """Do it all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"seed": options.seed}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report["kills"] = kills(folder / "kills", options.kills, options.seed)
        print(report["kills"], file=sys.stderr)
        report["stops"] = stops(folder / "stops", options.stops, options.seed)
        report["losses"] = losses(folder / "losses", options.stops, options.seed)
    report |= {"minutes": round((time.monotonic() - started) / 60, 1), "environment": environment()}
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
