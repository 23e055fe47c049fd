"""A server process and clients that load it, for `serving.py`."""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from davit.models.create import create_model
from davit.preprocessing import Preprocessing
from davit.weights.save import save

Options = argparse.Namespace

_ONE_BATCH = 0.03  # seconds between the first and last answer of one
TIMEOUT = 60.0  # seconds; a request without an answer by then is lost


@dataclass
class Tally:
    """What clients saw.

    Attributes:
        seconds: of each answer, by status and type of error, such as "200" and "503 overloaded".
        ended: when each "200" came.
        lost: requests without a whole answer, by reason.
        refused: connections that were not taken.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    ended: list[float] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    refused: int = 0

    def add(self, kind: str, seconds: float) -> None:
        """Count an answer."""
        self.seconds.setdefault(kind, []).append(seconds)
        if kind == "200":
            self.ended.append(time.perf_counter())

    def rate(self) -> float:
        """Answers a second, from the end of the first batch to the end of the last."""
        first, last = min(self.ended), max(self.ended)
        later = sum(moment > first + _ONE_BATCH for moment in self.ended)
        return later / max(last - first, 1e-9)

    def count(self, kind: str = "200") -> int:
        """Answers of a kind."""
        return len(self.seconds.get(kind, ()))

    def counts(self) -> dict[str, int]:
        """All that was seen."""
        return {kind: len(all_) for kind, all_ in sorted(self.seconds.items())} | {
            f"lost: {k}": v for k, v in self.lost.items()
        }


def percentile(values: Sequence[float], share: float) -> float:
    """In milliseconds; NaN of none."""
    return round(1000 * float(np.quantile(values, share)), 2) if values else float("nan")


class Client:
    """One connection, opened anew when it is gone; sends bytes made beforehand."""

    def __init__(self, port: int, tally: Tally) -> None:
        """Connect to loopback when first asked."""
        self._port, self._tally = port, tally
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, raw: bytes, since: float | None = None) -> tuple[str, bytes] | None:
        """Send a request and count its answer, timed from `since` or from now; None where there was none."""
        begun = time.perf_counter() if since is None else since
        if self._streams is not None and self._streams[0].at_eof():
            self.close()  # the server ended what was idle for long; every pool of connections looks before it asks
        new = self._streams is None
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            self._tally.refused += 1
            return None
        reader, writer = self._streams
        try:
            async with asyncio.timeout(TIMEOUT):
                writer.write(raw)
                status, body, closes = await _answer(reader, bodiless=raw.startswith(b"HEAD"))
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            self._tally.lost[f"{type(error).__name__}{' on a new connection' if new else ''}"] += 1
            self.close()
            return None
        if closes:
            self.close()
        kind = status if status == "200" else f"{status} {error_type(body)}"
        self._tally.add(kind, time.perf_counter() - begun)
        return kind, body

    def close(self) -> None:
        """Let the connection go."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _answer(reader: asyncio.StreamReader, *, bodiless: bool) -> tuple[str, bytes, bool]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if head[9:10] == b"1":  # such as 100 Continue
        return await _answer(reader, bodiless=bodiless)
    length = re.search(rb"content-length: (\d+)", head)
    body = b"" if bodiless else await (reader.readexactly(int(length[1])) if length else reader.read())
    return head[9:12].decode(), body, b"connection: close" in head or not length


def error_type(body: bytes) -> str:
    """The name of an error, or nothing."""
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["error"]["type"])
    return "untyped"


def post(body: bytes, path: str = "/v1/predict?top=1") -> bytes:
    """A request with one picture."""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def pictures(count: int, side: int, seed: int = 0) -> list[bytes]:
    """JPEGs about as hard to decode as photographs."""
    made = []
    rng = np.random.default_rng(seed)
    for _ in range(count):
        coarse = rng.integers(0, 256, (side // 16 + 2, side // 16 + 2, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        noisy = np.asarray(image).astype(np.int16) + rng.integers(-12, 13, (side, side, 3))
        stream = BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        made.append(stream.getvalue())
    return made


@asynccontextmanager
async def asking(port: int, requests: Sequence[bytes], clients: int) -> AsyncGenerator[Tally]:
    """So many clients ask again and again, whatever they are answered, until the block ends."""
    tally, over = Tally(), False

    async def one(place: int) -> None:
        client = Client(port, tally)
        while not over:
            if await client.ask(requests[place % len(requests)]) is None:
                await asyncio.sleep(0.02)
        client.close()

    tasks = [asyncio.ensure_future(one(place)) for place in range(clients)]
    try:
        yield tally
    finally:
        over = True
        await asyncio.gather(*tasks)


async def closed_loop(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Tally:
    """So many clients ask again as soon as they are answered; the first second does not count."""
    tallies = [Tally(), Tally()]
    begun = time.perf_counter()

    async def one(place: int) -> None:
        client = Client(port, tallies[0])
        turn = place
        while (spent := time.perf_counter() - begun) < seconds + 1:
            client._tally = tallies[spent >= 1]
            answer = await client.ask(requests[turn % len(requests)])
            turn += clients
            if answer is None or answer[0] != "200":
                await asyncio.sleep(0.2)
        client.close()

    await asyncio.gather(*(one(place) for place in range(clients)))
    return tallies[1]


async def open_loop(
    port: int, requests: Sequence[bytes], rate: float, seconds: float, seed: int = 0, *, even: bool = False
) -> Tally:
    """Requests at random moments, or at even distances, `rate` a second, whether earlier ones are answered or not."""
    tally, idle, tasks = Tally(), list[Client](), set[asyncio.Task[None]]()
    rng = random.Random(seed)
    begun = due = time.perf_counter()

    async def one(raw: bytes, since: float) -> None:
        client = idle.pop() if idle else Client(port, tally)
        await client.ask(raw, since)
        idle.append(client)

    turn = 0
    while due - begun < seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.ensure_future(one(requests[turn % len(requests)], due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        due += 1 / rate if even else rng.expovariate(rate)
        turn += 1
    await asyncio.gather(*tasks)
    for client in idle:
        client.close()
    return tally


@dataclass
class Server:
    """A server process."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    def memory(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def handles(self) -> int:
        """Open files and sockets."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))  # noqa: PTH208 (no objects for each)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def serving(folder: Path, *arguments: str) -> Generator[Server]:
    """Start `davit serve` and wait until it is ready."""
    log = folder / "serve.log"
    command = [sys.executable, "-m", "davit", "serve", "--port", "0", "--json", *arguments]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            if not (told := process.stdout.readline()):
                raise SystemExit(log.read_text())
            yield Server(process, int(json.loads(told)["url"].rpartition(":")[2]), log)
        finally:
            if process.poll() is None:
                process.kill()


def fresh_model(folder: Path, variant: str, side: int, classes: int = 1000) -> Path:
    """A classifier with random weights."""
    path = folder / f"{variant}_{side}.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        model = create_model(variant, num_classes=classes)
        model.preprocessing = Preprocessing.imagenet(side)
        save(model.eval(), path)
    return path


def turns(rounds: int, *works: Callable[[], float]) -> list[tuple[float, ...]]:
    """What each work gives, in turns, so that slow spells of the machine touch all of them."""
    found = []
    for round_ in range(rounds):
        order = list(range(len(works)))[:: 1 if round_ % 2 == 0 else -1]
        values = {place: works[place]() for place in order}
        found.append(tuple(values[place] for place in range(len(works))))
    return found


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
