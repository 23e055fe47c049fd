"""A server that is killed under load and started anew by the process beside it; see `serving.py`."""

import asyncio
import os
import random
import signal
import statistics
import time
from pathlib import Path
from typing import Any

from davit.serving.restarting import SHORT
from serving_load import Client, Options, Server, Tally, arguments_of, asking, model_of, requests_of, serving


def killed(options: Options, folder: Path) -> dict[str, Any]:
    """L5: SIGKILL at a random moment under load, again and again, to a server that is started anew."""
    requests, rng = requests_of(options), random.Random(options.seed)
    with serving(folder, *arguments_of(options, model_of(options, folder), "--restart")) as server:
        spent, tally = asyncio.run(_killed(server, requests, options, rng))
        server.process.terminate()
        code = server.process.wait(30)
    return {
        "kills": options.times,
        "seconds_until_ready": {"median": round(statistics.median(spent), 2), "most": round(max(spent), 2)},
        "answers": tally.counts(),
        "connections_refused": tally.refused,
        "exit_code": code,
    }


async def _killed(
    server: Server, requests: list[bytes], options: Options, rng: random.Random
) -> tuple[list[float], Tally]:
    spent: list[float] = []
    parent = server.process.pid
    async with asking(server.port, requests, 2 * options.batch_size) as tally:
        for _ in range(options.times):
            await asyncio.sleep(SHORT + rng.uniform(0, 2))  # who dies sooner five times in a row is given up
            (child,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            os.kill(int(child), signal.SIGKILL)
            begun, ready = time.perf_counter(), None
            while ready is None or ready[0] != "200":
                assert server.process.poll() is None, server.log.read_text()[-2000:]
                await asyncio.sleep(0.02)
                ready = await Client(server.port, Tally()).ask(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")
            spent.append(time.perf_counter() - begun)
    return spent, tally
