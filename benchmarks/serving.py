"""What `davit serve` holds under load, overload, stops, stalls and nonsense.

    python benchmarks/serving.py saturation [--variant davit_tiny --size 224 --threads 1 --rounds 5 --seconds 10]
    python benchmarks/serving.py overload   [--times 5 --seconds 30]
    python benchmarks/serving.py sigterm    [--times 20]
    python benchmarks/serving.py stalled    [--connections 200 --rounds 3]
    python benchmarks/serving.py mutate     [--requests 1000000 --seed 0]
    python benchmarks/serving.py odd FOLDER [--model FILE]
    python benchmarks/serving.py soak       [--seconds 3600]

Each starts servers of its own on loopback, prints what it saw and writes it with --out FILE, with hardware and
versions. Weights are random unless --model gives some. Clients share the machine with the server; --threads are the
server's for computing, so that on a machine of N processors N - 1 leave one for everything else.

`saturation` lets the bare backend (batches of --batch-size, prepared before) and the server (as many clients as keep
its batches full) take turns, then asks at random moments at 70 % of the server's rate. `overload` asks at random
moments at --times the rate of its clients that wait. `sigterm` stops a server at a random moment under load. `stalled`
compares good clients with and without connections that send half a header or half a body. `mutate` sends whole
requests that are nearly right, one in ten with broken framing. `odd` compares each file's answer with the predictor's.
`soak` asks at 80 %.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from davit.decoding import ImageError, read_image
from davit.inference.predictor import Predictor
from davit.serving.served import ModelSource, open_model
from record import write_record
from serving_load import (
    Client,
    Server,
    Tally,
    closed_loop,
    fresh_model,
    open_loop,
    percentile,
    pictures,
    post,
    serving,
    turns,
)
from serving_mutations import mutate

Options = argparse.Namespace


def model_of(options: Options, folder: Path) -> Path:
    """The file that is served."""
    return Path(options.model) if options.model else fresh_model(folder, options.variant, options.size)


def arguments_of(options: Options, model: Path, *more: str) -> list[str]:
    """What the server is started with."""
    given = ["--model", f"m={model}", "--backend", options.backend, "--batch-size", str(options.batch_size)]
    threads = [] if options.threads is None else ["--threads", str(options.threads)]
    return [*given, *threads, "--watch", "0", *more]


def requests_of(options: Options) -> list[bytes]:
    """Requests with a picture each, somewhat larger than what the model takes."""
    return [post(data) for data in pictures(32, options.size * 8 // 7)]


def latencies(tally: Tally, kind: str = "200") -> dict[str, float]:
    """Milliseconds."""
    values = tally.seconds.get(kind, [])
    return {"p50": percentile(values, 0.5), "p99": percentile(values, 0.99), "most": percentile(values, 1.0)}


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
        calm = asyncio.run(open_loop(server.port, requests, rate, options.rounds * options.seconds))
    at = latencies(calm)
    return {
        "engine": loaded.engine,
        "bare_images_per_second": [round(bare_, 2) for bare_, _ in found],
        "served_images_per_second": [round(ours, 2) for _, ours in found],
        "share": {"median": statistics.median(shares), "least": min(shares), "most": max(shares)},
        "at_70_percent": {"requests_per_second": round(rate, 2), "answers": calm.counts(), "milliseconds": at},
        "p99_over_p50": round(at["p99"] / at["p50"], 2),
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


def sigterm(options: Options, folder: Path) -> dict[str, Any]:
    """L4."""
    requests, rng = requests_of(options), random.Random(options.seed)
    seen: Counter[str] = Counter()
    stops = []
    for _ in range(options.times):
        with serving(folder, *arguments_of(options, model_of(options, folder))) as server:
            tally, seconds, ready = asyncio.run(_stopped(server, requests, 2 * options.batch_size, rng.uniform(1, 3)))
            stops.append({"seconds": round(seconds, 2), "exit": server.process.wait(30), "ready_after": ready})
        seen.update(tally.counts())
        seen["connections refused"] += tally.refused
        answered = sum(
            1 for line in server.log.read_text().splitlines()
            if (told := json.loads(line)).get("path") == "/v1/predict" and told["status"] == 200
        )  # fmt: skip
        seen["answers that the server sent and no client got"] += answered - tally.count()
    spent = [stop["seconds"] for stop in stops]
    return {
        "stops": options.times,
        "answers": dict(seen),
        "lost": sum(count for kind, count in seen.items() if kind.startswith("lost")),
        "exit_codes": dict(Counter(stop["exit"] for stop in stops)),
        "still_ready": sum(stop["ready_after"] for stop in stops),
        "seconds_to_exit": {"median": statistics.median(spent), "most": max(spent)},
    }


async def _stopped(server: Server, requests: list[bytes], clients: int, after: float) -> tuple[Tally, float, bool]:
    tally, over = Tally(), False

    async def one(place: int) -> None:
        client = Client(server.port, tally)
        while not over:
            if await client.ask(requests[place % len(requests)]) is None:
                await asyncio.sleep(0.02)
        client.close()

    tasks = [asyncio.ensure_future(one(place)) for place in range(clients)]
    await asyncio.sleep(after)
    server.process.terminate()
    begun = time.perf_counter()
    await asyncio.sleep(0.05)
    probe = await Client(server.port, Tally()).ask(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")
    while server.process.poll() is None:
        await asyncio.sleep(0.01)
    spent = time.perf_counter() - begun
    over = True
    await asyncio.gather(*tasks)
    return tally, spent, probe is not None and probe[0] == "200"


def stalled(options: Options, folder: Path) -> dict[str, Any]:
    """S4."""
    requests = requests_of(options)
    longest: list[float] = []
    with serving(folder, *arguments_of(options, model_of(options, folder), "--deadline", "60")) as server:
        clients = 3 * options.batch_size

        def rate(connections: int) -> float:
            return asyncio.run(_beside(server, requests, clients, options.seconds, connections, longest))

        rate(0)
        found = turns(options.rounds, lambda: rate(0), lambda: rate(options.connections))
    shares = [beside / alone for alone, beside in found]
    return {
        "connections": options.connections,
        "alone_images_per_second": [round(alone, 2) for alone, _ in found],
        "beside_images_per_second": [round(beside, 2) for _, beside in found],
        "share": {"median": statistics.median(shares), "least": min(shares), "most": max(shares)},
        "closed": len(longest),
        "seconds_to_close": {"median": statistics.median(longest), "most": max(longest)},
    }


async def _beside(
    server: Server, requests: list[bytes], clients: int, seconds: float, connections: int, closed: list[float]
) -> float:
    """Images a second of good clients beside connections that stall."""
    halves = (requests[0][:40], requests[0][: len(requests[0]) // 2])

    async def stall(place: int) -> None:
        begun = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(halves[place % 2])
        while await reader.read(65536):
            pass
        closed.append(time.perf_counter() - begun)
        writer.close()

    stalling = [asyncio.ensure_future(stall(place)) for place in range(connections)]
    tally = await closed_loop(server.port, requests, clients, seconds)
    await asyncio.gather(*stalling)
    assert set(tally.seconds) == {"200"}, tally.counts()
    return tally.rate()


def odd(options: Options, folder: Path) -> dict[str, Any]:
    """Every file of a folder, through the server and through the predictor."""
    model = model_of(options, folder)
    predictor = Predictor.load(model, backend="eager")
    rows: list[dict[str, Any]] = []
    with serving(folder, *arguments_of(options, model)) as server:
        for path in sorted(each for each in Path(options.folder).iterdir() if each.is_file()):
            answer = asyncio.run(_ask_once(server, post(path.read_bytes(), "/v1/predict?top=5")))
            row: dict[str, Any] = {"file": path.name, "status": answer[0]}
            if answer[0] == "200":
                got, wanted = json.loads(answer[1])["results"][0]["top"], predictor(path)[0].to_json()["top"]
                error = max(abs(a["score"] - b["score"]) for a, b in zip(got, wanted, strict=True))
                row |= {"same_best": got[0]["index"] == wanted[0]["index"], "largest_difference": error}
            elif "image_damaged" in answer[0]:
                with suppress(ImageError):
                    predictor(path)
                    row["same_best"] = False  # the predictor can read it
            rows.append(row)
            print(f"{path.name:40} {row['status']:24} {row.get('largest_difference', '')}")
    right = [row.get("same_best", True) and row.get("largest_difference", 0) < 1e-5 for row in rows]
    return {
        "files": len(rows),
        "answers": dict(Counter(row["status"] for row in rows)),
        "5xx_or_none": sum(not re.match("[24]", row["status"]) for row in rows),
        "other_than_the_predictor": [row["file"] for row, ok in zip(rows, right, strict=True) if not ok],
        "rows": rows,
    }


async def _ask_once(server: Server, raw: bytes) -> tuple[str, bytes]:
    client = Client(server.port, Tally())
    answer = await client.ask(raw)
    client.close()
    return answer or ("no answer", b"")


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


def mutations(options: Options, folder: Path) -> dict[str, Any]:
    """S3."""
    model = Path(options.model) if options.model else fresh_model(folder, "davit_pico", 32, classes=5)
    with serving(folder, *arguments_of(options, model, "--max-pixels", "1000000", "--deadline", "60")) as server:
        return asyncio.run(mutate(server, options.requests, options.seed))


VERBS = {
    "saturation": saturation,
    "overload": overload,
    "sigterm": sigterm,
    "stalled": stalled,
    "mutate": mutations,
    "odd": odd,
    "soak": soak,
}


def main() -> None:
    """Run one verb."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in VERBS:
        one = verbs.add_parser(verb)
        one.add_argument("--model")
        one.add_argument("--variant", default="davit_tiny")
        one.add_argument("--size", type=int, default=224)
        one.add_argument("--backend", default="native", choices=("auto", "native", "eager"))
        one.add_argument("--threads", type=int)
        one.add_argument("--batch-size", type=int, default=8)
        one.add_argument("--seconds", type=float, default=3600.0 if verb == "soak" else 10.0)
        one.add_argument("--rounds", type=int, default=5)
        one.add_argument("--times", type=int, default=20 if verb == "sigterm" else 5)
        one.add_argument("--connections", type=int, default=200)
        one.add_argument("--requests", type=int, default=1_000_000)
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
