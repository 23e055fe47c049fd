"""What a server does when it is stopped, stalled, or sent nonsense; see `serving.py`."""

import asyncio
import json
import random
import re
import statistics
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from davit.decoding import ImageError
from davit.inference.predictor import Predictor
from serving_load import (
    Client,
    Options,
    Server,
    Tally,
    arguments_of,
    asking,
    closed_loop,
    model_of,
    pictures,
    post,
    requests_of,
    serving,
    turns,
)
from serving_mutations import mutate


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
    async with asking(server.port, requests, clients) as tally:
        await asyncio.sleep(after)
        server.process.terminate()
        begun = time.perf_counter()
        await asyncio.sleep(0.05)
        probe = await Client(server.port, Tally()).ask(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")
        while server.process.poll() is None:
            await asyncio.sleep(0.01)
        spent = time.perf_counter() - begun
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


def mutations(options: Options, folder: Path) -> dict[str, Any]:
    """S3."""
    with serving(
        folder, *arguments_of(options, model_of(options, folder), "--max-pixels", "1000000", "--deadline", "60")
    ) as server:
        return asyncio.run(mutate(server, options.requests, options.seed))


def equal(options: Options, folder: Path) -> dict[str, Any]:
    """L6."""
    files = pictures(options.requests, options.size * 8 // 7, options.seed)
    with serving(folder, *arguments_of(options, model_of(options, folder), "--deadline", "60")) as server:

        def answers(path: str, clients: int) -> list[Any]:
            raw = [post(data, path) for data in files]
            found = asyncio.run(_each(server, raw, clients))
            return [json.loads(body)["results"][0] for body in found]

        crowd = 3 * options.batch_size
        best = [[each["top"][0]["index"] for each in answers("/v1/predict?top=1", many)] for many in (1, crowd)]
        vectors = [[each["embedding"] for each in answers("/v1/embed", many)] for many in (1, crowd)]
        metrics = asyncio.run(_ask_once(server, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"))[1].decode()
    counted = {
        name: float(value) for name, value in re.findall(r"^davit_batch_images_(sum|count)\S* (\S+)$", metrics, re.M)
    }
    alone, together = (torch.tensor(each, dtype=torch.float64) for each in vectors)
    return {
        "pictures": len(files),
        "other_best_class": sum(a != b for a, b in zip(*best, strict=True)),
        "classes_found": len(set(best[0])),
        "largest_difference_of_vectors": float((alone - together).abs().max()),
        "images_a_batch_over_both": round(counted["sum"] / counted["count"], 2),
    }


async def _each(server: Server, requests: list[bytes], clients: int) -> list[bytes]:
    """Bodies of the answers to all requests, asked by so many clients at once."""
    bodies: list[bytes] = [b""] * len(requests)
    left = iter(enumerate(requests))

    async def one() -> None:
        client = Client(server.port, Tally())
        for place, raw in left:
            answer = await client.ask(raw)
            assert answer is not None
            assert answer[0] == "200", answer
            bodies[place] = answer[1]
        client.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return bodies


def disconnect(options: Options, folder: Path) -> dict[str, Any]:
    """L7."""
    requests, rng = requests_of(options), random.Random(options.seed)
    with serving(folder, *arguments_of(options, model_of(options, folder))) as server:
        asyncio.run(closed_loop(server.port, requests, 3 * options.batch_size, 3))
        samples = [(server.memory(), server.handles())]
        for _ in range(10):
            asyncio.run(_leave(server, requests, options.connections // 10, rng))
            time.sleep(0.5)
            samples.append((server.memory(), server.handles()))
        after = asyncio.run(_ask_once(server, requests[0]))[0]
        metrics = asyncio.run(_ask_once(server, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"))[1].decode()
    kept = {name: float(value) for name, value in re.findall(r"^davit_(\w+)(?:\{[^}]*\})? (\S+)$", metrics, re.M)}
    return {
        "left": 10 * (options.connections // 10),
        "counted_as_left": kept["disconnects_total"],
        "images_not_computed": kept["images_dropped_total"],
        "held_afterwards": {name: kept[name] for name in ("queue_images", "queue_bytes")},
        "in_flight_afterwards": kept["requests_in_flight"] - 1,  # less the question itself
        "memory_mib": {"before": samples[0][0] / 2**20, "after": samples[-1][0] / 2**20},
        "handles": {"before": samples[0][1], "after": samples[-1][1]},
        "answer_afterwards": after,
        "samples": samples,
    }


async def _leave(server: Server, requests: list[bytes], clients: int, rng: random.Random) -> None:
    """Clients that send half a request or a whole one, and are gone within a tenth of a second."""

    async def one(raw: bytes, seconds: float) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(raw)
        await asyncio.sleep(seconds)
        writer.transport.abort()

    raws = [rng.choice(requests) for _ in range(clients)]
    await asyncio.gather(*(one(raw[: rng.choice((len(raw) // 2, len(raw)))], rng.uniform(0, 0.1)) for raw in raws))
