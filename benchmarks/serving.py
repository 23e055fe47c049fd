"""What `davit serve` holds under load, overload, stops, stalls and nonsense.

    python benchmarks/serving.py saturation [--variant davit_tiny --size 224 --threads 1 --rounds 5 --seconds 10]
    python benchmarks/serving.py overload   [--times 5 --seconds 30]
    python benchmarks/serving.py sigterm    [--times 20]
    python benchmarks/serving.py killed     [--times 20]
    python benchmarks/serving.py stalled    [--connections 200 --rounds 3]
    python benchmarks/serving.py mutate     [--requests 1000000 --seed 0]
    python benchmarks/serving.py odd FOLDER [--model FILE]
    python benchmarks/serving.py equal      [--requests 10000]
    python benchmarks/serving.py disconnect [--connections 1000]
    python benchmarks/serving.py soak       [--seconds 3600]

Each starts servers of its own on loopback, prints what it saw and writes it with --out FILE, with hardware and
versions. Weights are random unless --model gives some. Clients share the machine with the server; --threads are the
server's for computing, so that on a machine of N processors N - 1 leave one for everything else.

`saturation` lets the bare backend (batches of --batch-size, prepared before) and the server (as many clients as keep
its batches full) take turns, then asks at 70 % of the server's rate, at random moments (a Poisson process) and at even
distances (as vegeta and k6's constant arrival rate do). `overload` asks at random moments at --times the rate of its
clients that wait. `sigterm` stops a server at a random moment under load; `killed` kills one with `--restart` and
counts the seconds until the next is ready. `stalled` compares good clients with and without connections that send half
a header or half a body. `mutate` sends whole requests that are nearly right, one in ten with broken framing. `odd`
compares each file's answer with the predictor's. `equal` compares the answers of one who asks alone with those of many
at once; `disconnect` leaves in the middle. `soak` asks at 80 %.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from davit.decoding import read_image
from davit.serving.served import ModelSource, open_model
from record import write_record
from serving_faults import disconnect, equal, mutations, odd, sigterm, stalled
from serving_kills import killed
from serving_load import (
    Options,
    Tally,
    arguments_of,
    closed_loop,
    latencies,
    model_of,
    open_loop,
    pictures,
    requests_of,
    serving,
    turns,
)


def saturation(options: Options, folder: Path) -> dict[str, Any]:
    """L1."""
    model, requests = model_of(options, folder), requests_of(options)
    loaded = open_model(ModelSource(name="m", source=str(model), backend=options.backend), print)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    shown = [read_image(data) for data in pictures(options.batch_size, options.size * 8 // 7)]
    batch = torch.stack([loaded.backend.preprocessing(picture) for picture in shown])
    loaded.backend(batch)

    def bare() -> float:
        begun, images = time.perf_counter(), 0
        while time.perf_counter() - begun < options.seconds:
            loaded.backend(batch)
            images += len(batch)
        return images / (time.perf_counter() - begun)

    with serving(folder, *arguments_of(options, model, "--deadline", "60")) as server:

        def served() -> float:
            tally = asyncio.run(closed_loop(server.port, requests, 3 * options.batch_size, options.seconds))
            assert set(tally.seconds) == {"200"}, tally.counts()
            return tally.rate()

        served()
        found = turns(options.rounds, bare, served)
        shares = [ours / theirs for theirs, ours in found]
        rate = 0.7 * statistics.median(ours for _, ours in found)
        asked = {}
        for how in ("random", "even"):
            spent = options.rounds * options.seconds
            calm = asyncio.run(open_loop(server.port, requests, rate, spent, even=how == "even"))
            at = latencies(calm)
            asked[how] = {"answers": calm.counts(), "milliseconds": at, "p99_over_p50": round(at["p99"] / at["p50"], 2)}
    return {
        "engine": loaded.engine,
        "bare_images_per_second": [round(bare_, 2) for bare_, _ in found],
        "served_images_per_second": [round(ours, 2) for _, ours in found],
        "share": {"median": statistics.median(shares), "least": min(shares), "most": max(shares)},
        "at_70_percent": {"requests_per_second": round(rate, 2), **asked},
    }


def overload(options: Options, folder: Path) -> dict[str, Any]:
    """L2."""
    requests = requests_of(options)
    with serving(folder, *arguments_of(options, model_of(options, folder))) as server:
        clients = 3 * options.batch_size
        asyncio.run(closed_loop(server.port, requests, clients, 3))
        before = asyncio.run(closed_loop(server.port, requests, clients, options.seconds)).rate()
        begun = time.perf_counter()
        tally = asyncio.run(open_loop(server.port, requests, options.times * before, options.seconds))
        spent = time.perf_counter() - begun
        after = asyncio.run(closed_loop(server.port, requests, clients, options.seconds)).rate()
    peak, accepted = max(before, after), tally.seconds.get("200", [])
    refused = tally.seconds.get("503 overloaded", [])
    return {
        "peak_images_per_second": {"before": round(before, 2), "after": round(after, 2)},
        "asked_per_second": round(sum(map(len, tally.seconds.values())) / options.seconds, 2),
        "answers": tally.counts(),
        "goodput_images_per_second": round(len(accepted) / spent, 2),
        "goodput_share": len(accepted) / spent / peak,
        "accepted_milliseconds": latencies(tally),
        "accepted_after_deadline": sum(seconds > 10 for seconds in accepted),
        "refused_milliseconds": latencies(tally, "503 overloaded"),
        "refused_within_100_ms": sum(seconds <= 0.1 for seconds in refused) / max(len(refused), 1),
        "lost": sum(tally.lost.values()),
    }


def soak(options: Options, folder: Path) -> dict[str, Any]:
    """L3."""
    requests = requests_of(options)
    with serving(folder, *arguments_of(options, model_of(options, folder))) as server:
        peak = asyncio.run(closed_loop(server.port, requests, 3 * options.batch_size, 10)).rate()
        tally, samples = Tally(), []
        pieces = 20
        for piece in range(pieces):
            part = asyncio.run(open_loop(server.port, requests, 0.8 * peak, options.seconds / pieces, seed=piece))
            for kind, seconds in part.seconds.items():
                tally.seconds.setdefault(kind, []).extend(seconds)
            tally.lost.update(part.lost)
            samples.append((server.memory(), server.handles()))
            print(f"{(piece + 1) / pieces:.0%}: {samples[-1][0] / 2**20:.1f} MiB, {samples[-1][1]} handles", flush=True)
    first = samples[pieces // 10]  # a tenth is warm-up
    return {
        "seconds": options.seconds,
        "requests_per_second": round(0.8 * peak, 2),
        "answers": tally.counts(),
        "milliseconds": latencies(tally),
        "memory_growth": samples[-1][0] / first[0] - 1,
        "handles": {"first": first[1], "last": samples[-1][1]},
        "samples": samples,
    }


VERBS = {
    "saturation": saturation,
    "overload": overload,
    "sigterm": sigterm,
    "killed": killed,
    "stalled": stalled,
    "mutate": mutations,
    "odd": odd,
    "equal": equal,
    "disconnect": disconnect,
    "soak": soak,
}


def main() -> None:
    """Run one verb."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in VERBS:
        one = verbs.add_parser(verb)
        one.add_argument("--model")
        one.add_argument("--variant", default="davit_pico" if verb == "mutate" else "davit_tiny")
        one.add_argument("--size", type=int, default=32 if verb == "mutate" else 224)
        one.add_argument("--backend", default="native", choices=("auto", "native", "eager"))
        one.add_argument("--threads", type=int)
        one.add_argument("--batch-size", type=int, default=8)
        one.add_argument("--seconds", type=float, default=3600.0 if verb == "soak" else 10.0)
        one.add_argument("--rounds", type=int, default=5)
        one.add_argument("--times", type=int, default=20 if verb in ("sigterm", "killed") else 5)
        one.add_argument("--connections", type=int, default=1000 if verb == "disconnect" else 200)
        one.add_argument("--requests", type=int, default=10_000 if verb == "equal" else 1_000_000)
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--out", type=Path)
        if verb == "odd":
            one.add_argument("folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = VERBS[options.verb](options, Path(folder))
    for name, value in found.items():
        if name not in ("rows", "samples"):
            print(f"{name:32} {json.dumps(value)}")
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    write_record({"benchmark": f"serving {options.verb}", "settings": settings, **found}, options.out)


if __name__ == "__main__":
    main()
