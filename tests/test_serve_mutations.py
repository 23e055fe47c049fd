"""Ten thousand mutated requests and pictures: none brings an answer of 500 or more, none is left behind.

benchmarks/serving.py mutate sends a million to a process.
"""

import asyncio
import json
import random
import re
from collections import Counter
from typing import Any

import pytest

from davit.serving.app import create_app
from davit.serving.errors import STATUS
from davit.serving.limits import Limits
from mutated_requests import Request, broken, mutated
from small_servers import colour_model, listening, running

LIMITS = Limits(pixels=300_000, images=8, queue_bytes=50_000_000)


async def ask(app: Any, request: Request) -> tuple[int, bytes]:
    """Send a request to an application, as uvicorn would."""
    path, _, asked = request.target.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": request.method, "path": path,
        "raw_path": path.encode("latin-1"), "query_string": asked.encode("latin-1"), "root_path": "", "scheme": "http",
        "headers": [*request.headers, (b"content-length", b"%d" % len(request.body))], "client": ("test", 1),
        "server": ("test", 80),
    }  # fmt: skip
    parts = [{"type": "http.request", "body": request.body, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if parts:
            return parts.pop()
        return await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.slow
def test_ten_thousand_mutated_requests_bring_no_5xx() -> None:
    rng = random.Random(0)
    seen: Counter[str] = Counter()

    async def work() -> None:
        async with running({"m": colour_model()}, limits=LIMITS) as service:
            app = create_app(service)
            for place in range(2500):
                requests = [mutated(rng) for _ in range(4)]
                for request, (status, body) in zip(
                    requests, await asyncio.gather(*(ask(app, each) for each in requests)), strict=True
                ):
                    assert status < 500, (place, request, body)
                    if status >= 400:
                        kind = json.loads(body)["error"]["type"]
                        assert STATUS[kind] == status
                        seen[kind] += 1
                    else:
                        seen["answered"] += 1
            assert service.budget.held == service.models["m"].batcher.pending == 0
            assert not service.models["m"].batcher._groups

    asyncio.run(work())
    assert sum(seen.values()) == 10_000
    assert seen["answered"] > 500
    expected = {"image_damaged", "unsupported_format", "bad_multipart", "bad_parameter", "too_many_images", "no_image"}
    assert expected | {"unsupported_media_type", "method_not_allowed", "not_found", "unknown_model"} <= seen.keys()


def test_broken_framing_ends_in_an_answer_below_500_or_a_closed_connection() -> None:
    rng = random.Random(1)

    async def one(port: int, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        try:
            got = await asyncio.wait_for(reader.read(65536), 0.2)
        except (TimeoutError, ConnectionError):
            got = b""
        writer.transport.abort()
        return got

    async def work() -> None:
        async with running({"m": colour_model()}, limits=LIMITS) as service, listening(service) as address:
            port = int(address.rpartition(":")[2])
            for _ in range(30):
                for got in await asyncio.gather(*(one(port, broken(rng)) for _ in range(10))):
                    assert not got or re.match(rb"HTTP/1.1 (100|[1-4]\d\d) ", got), got
            await asyncio.sleep(0.2)
            assert service.budget.held == service.models["m"].batcher.pending == 0

    asyncio.run(work())
