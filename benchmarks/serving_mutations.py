"""Requests that are nearly right, sent to a server process until so many are answered."""

import asyncio
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from mutated_requests import broken, mutated
from serving_load import Client, Server, Tally

CLIENTS = 8
BROKEN = 10  # one in so many has broken framing
WAIT = 0.1  # seconds for the answer to what may be no whole request
SHOWN = 20


async def mutate(server: Server, requests: int, seed: int) -> dict[str, Any]:
    """Request number N is a function of seed and N, so that each can be sent again."""
    tally, bad, numbers = Tally(), list[str](), iter(range(requests))
    framing: Counter[str] = Counter()
    memory: list[int] = []
    begun = time.perf_counter()

    async def one() -> None:
        client = Client(server.port, tally)
        for number in numbers:
            rng = random.Random(f"{seed} {number}")
            if number % BROKEN:
                before = sum(tally.lost.values())
                kind = await client.ask(mutated(rng).raw())
                if kind is None or kind[0].startswith("5"):
                    lost = sum(tally.lost.values()) - before
                    bad.append(f"{number}: {kind[0] if kind else f'no answer ({lost})'}")
            else:
                status = await _broken(server.port, broken(rng))
                framing[status] += 1
                if status.startswith("5"):
                    bad.append(f"{number}: {status}")
            if number % max(1, requests // 20) == 0:
                memory.append(server.memory())
                print(f"{number:,}: {memory[-1] / 2**20:.1f} MiB, {time.perf_counter() - begun:.0f} s", flush=True)
        client.close()

    await asyncio.gather(*(one() for _ in range(CLIENTS)))
    last = server.memory()
    return {
        "requests": requests,
        "seconds": round(time.perf_counter() - begun, 1),
        "answers": tally.counts(),
        "broken_framing": dict(framing),
        "5xx_or_no_answer": len(bad),
        "which": bad[:SHOWN],
        "exited": server.process.poll() is not None,
        "memory_mib": {"after_a_twentieth": memory[min(1, len(memory) - 1)] / 2**20, "last": last / 2**20},
        "exit_code": server.stop(),
    }


async def _broken(port: int, raw: bytes) -> str:
    """The status that bytes bring which may be no whole request; "" where none comes soon."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(raw)
        try:
            head = await asyncio.wait_for(reader.read(64), WAIT)
        finally:
            writer.transport.abort()
    except TimeoutError:
        return "waits"
    except OSError:
        return "closed"
    return head[9:12].decode("latin-1") or "closed"
