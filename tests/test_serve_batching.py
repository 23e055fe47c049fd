"""Pictures of many requests computed together: grouped, bounded, on time, and each client's mishap its own."""

import asyncio
import gc
import time
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from davit.serving.batcher import Batcher, Call
from davit.serving.errors import ProblemError
from davit.serving.limits import Limits
from davit.serving.metrics import Metrics
from odd_pictures import encode
from small_servers import CLASSES, ColourBackend, client_of, colour_model, listening, running

COLOURS = np.eye(3, dtype=np.uint8) * 250


def colour(which: int, width: int = 20, height: int = 20) -> bytes:
    return encode(np.broadcast_to(COLOURS[which], (height, width, 3)).copy(), "PNG")


def body(data: bytes, **headers: str) -> dict[str, Any]:
    return {"content": data, "headers": {"content-type": "image/png", **headers}}


def best(entry: dict[str, Any]) -> str:
    return entry["top"][0]["label"]


def test_everyone_gets_his_own_answer_and_sizes_never_mix() -> None:
    backend = ColourBackend(wait=0.02, size=(8, 64), fit="within")
    shapes = [(8, 8), (8, 16), (16, 8)]
    asked = [(place % 3, shapes[place // 3 % 3]) for place in range(90)]

    async def work() -> list[httpx.Response]:
        async with running({"m": colour_model(backend)}) as service, client_of(service) as client:
            return await asyncio.gather(
                *(client.post("/v1/predict", **body(colour(which, *shape))) for which, shape in asked)
            )

    for (which, _), answer in zip(asked, asyncio.run(work()), strict=True):
        assert best(answer.json()["results"][0]) == CLASSES[which]
    assert sum(batch[0] for batch in backend.batches) == 90
    assert {batch[2:] for batch in backend.batches} == {(8, 8), (8, 16), (16, 8)}
    assert max(batch[0] for batch in backend.batches) == 8
    assert len(backend.batches) < 60


def test_a_lone_picture_does_not_wait_for_others() -> None:
    backend = ColourBackend()

    async def work() -> None:
        async with running({"m": colour_model(backend)}) as service, client_of(service) as client:
            for _ in range(3):
                await client.post("/v1/predict", **body(colour(0)))

    asyncio.run(work())
    assert [batch[0] for batch in backend.batches] == [1, 1, 1]


def test_one_bad_picture_of_32_leaves_31_answers() -> None:
    files = [("file", (f"{place}.png", colour(place % 3))) for place in range(32)]
    files[17] = ("file", ("17.png", colour(0)[:50]))

    async def work() -> httpx.Response:
        async with running({"m": colour_model()}) as service, client_of(service) as client:
            return await client.post("/v1/predict", files=files)

    results = asyncio.run(work()).json()["results"]
    assert [entry["file"] for entry in results] == [f"{place}.png" for place in range(32)]
    assert results.pop(17)["error"]["type"] == "image_damaged"
    assert [best(entry) for entry in results] == [CLASSES[place % 3] for place in range(32) if place != 17]


def test_a_batch_that_fails_is_500_and_the_next_is_fine() -> None:
    backend = ColourBackend(fails=lambda images: bool((images[:, 2].mean((1, 2)) > 0.5).any()))

    async def work() -> tuple[list[httpx.Response], str]:
        async with running({"m": colour_model(backend)}) as service, client_of(service) as client:
            answers = [await client.post("/v1/predict", **body(colour(which))) for which in (0, 2, 1, 2, 0)]
            return answers, (await client.get("/metrics")).text

    answers, metrics = asyncio.run(work())
    assert [answer.status_code for answer in answers] == [200, 500, 200, 500, 200]
    assert answers[1].json()["error"]["type"] == "model_failed"
    assert "secret" not in answers[1].text
    assert 'davit_batches_failed_total{model="m"} 2.0' in metrics


def test_answers_that_are_no_numbers_are_500() -> None:
    backend = ColourBackend()
    backend.__class__ = type(
        "Broken", (ColourBackend,), {"__call__": lambda _, images: images.mean((2, 3)) * torch.nan}
    )

    async def work() -> httpx.Response:
        async with running({"m": colour_model(backend)}) as service, client_of(service) as client:
            return await client.post("/v1/predict", **body(colour(0)))

    answer = asyncio.run(work())
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "model_failed")


def test_a_backend_that_is_lost_in_a_batch_is_told_by_health(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("davit.serving.batcher.STUCK", 0.1)

    async def work() -> list[int]:
        async with running({"m": colour_model(ColourBackend(wait=0.5))}) as service, client_of(service) as client:
            states = [(await client.get("/healthz")).status_code]
            waiting = asyncio.ensure_future(client.post("/v1/predict", **body(colour(0))))
            await asyncio.sleep(0.3)
            states.append((await client.get("/healthz")).status_code)
            await waiting
            return [*states, (await client.get("/healthz")).status_code]

    assert asyncio.run(work()) == [200, 503, 200]


def test_deadlines_pass_and_their_work_is_dropped() -> None:
    backend = ColourBackend(wait=0.4)

    async def work() -> tuple[list[httpx.Response], float, str]:
        async with running({"m": colour_model(backend)}, batch_size=1) as service, client_of(service) as client:
            first = asyncio.ensure_future(client.post("/v1/predict", **body(colour(0))))
            await asyncio.sleep(0.15)
            begun = time.monotonic()
            short = [client.post("/v1/predict", **body(colour(1), **{"x-deadline-ms": "150"})) for _ in range(3)]
            late = await asyncio.gather(*short)
            spent = time.monotonic() - begun
            answers = [await first, *late, await client.post("/v1/predict", **body(colour(2)))]
            return answers, spent, (await client.get("/metrics")).text

    answers, spent, metrics = asyncio.run(work())
    assert [answer.status_code for answer in answers] == [200, 504, 504, 504, 200]
    assert answers[1].json()["error"]["type"] == "deadline_exceeded"
    assert spent < 0.4
    assert len(backend.batches) == 2
    assert 'davit_images_dropped_total{model="m"} 3.0' in metrics


def test_at_five_times_capacity_the_excess_is_refused_at_once_and_nobody_accepted_is_lost() -> None:
    """Capacity is 200 images a second; for 0.6 s a thousand a second ask, whether others are answered or not."""
    backend = ColourBackend(wait=0.04)
    limits = Limits(images=1, queue_images=40, deadline=60)  # which no answer needs, on however slow a machine
    answers: list[httpx.Response] = []
    most = 0

    async def ask(client: httpx.AsyncClient) -> None:
        answers.append(await client.post("/v1/predict", **body(colour(0))))

    async def work() -> None:
        nonlocal most
        async with running({"m": colour_model(backend)}, limits=limits) as service, client_of(service) as client:
            tasks = []
            for _ in range(60):
                tasks += [asyncio.ensure_future(ask(client)) for _ in range(10)]
                await asyncio.sleep(0.01)
                most = max(most, service.models["m"].batcher.pending)
            await asyncio.gather(*tasks)
            assert service.budget.held == service.models["m"].batcher.pending == 0

    asyncio.run(work())
    assert len(answers) == 600
    assert {answer.status_code for answer in answers} == {200, 503}
    refused = [answer for answer in answers if answer.status_code == 503]
    assert most <= 40
    assert len(refused) > 100
    assert all(answer.json()["error"]["type"] == "overloaded" for answer in refused)
    assert all(1 <= int(answer.headers["retry-after"]) <= 10 for answer in refused)
    assert len(answers) - len(refused) == sum(batch[0] for batch in backend.batches)  # nothing was computed in vain


def test_a_queue_too_long_for_the_deadline_refuses() -> None:
    backend = ColourBackend(wait=0.1)

    async def work() -> list[httpx.Response]:
        async with running({"m": colour_model(backend)}, batch_size=1) as service, client_of(service) as client:
            for _ in range(3):
                await client.post("/v1/predict", **body(colour(0)))  # it learns how slow the model is
            waiting = [asyncio.ensure_future(client.post("/v1/predict", **body(colour(0)))) for _ in range(10)]
            await asyncio.sleep(0.05)
            hasty = await client.post("/v1/predict", **body(colour(0), **{"x-deadline-ms": "300"}))
            return [hasty, *await asyncio.gather(*waiting)]

    hasty, *others = asyncio.run(work())
    assert (hasty.status_code, hasty.json()["error"]["type"]) == (503, "overloaded")
    assert {answer.status_code for answer in others} == {200}


def test_a_queue_full_of_bytes_refuses() -> None:
    backend = ColourBackend(wait=0.3)
    limits = Limits(images=1, queue_bytes=2_100, body_bytes=1_000)

    async def work() -> list[httpx.Response]:
        async with running({"m": colour_model(backend)}, limits=limits) as service, client_of(service) as client:
            return await asyncio.gather(*(client.post("/v1/predict", **body(colour(0))) for _ in range(5)))

    statuses = sorted(answer.status_code for answer in asyncio.run(work()))
    assert statuses == [200, 200, 503, 503, 503]  # each takes 8 * 8 * 3 * 4 bytes and its body


def test_work_of_clients_who_left_is_dropped_and_leaks_nothing() -> None:
    """A thousand of them: only those that were being computed already were computed."""
    backend = ColourBackend(wait=0.005)
    data = colour(1)
    head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(data)}\r\n\r\n"

    async def leave(port: int, gate: asyncio.Semaphore) -> None:
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode() + data)
            await writer.drain()
            writer.transport.abort()
            del reader

    async def work() -> tuple[int, int]:
        async with running({"m": colour_model(backend)}) as service, listening(service) as address:
            port, gate = int(address.rpartition(":")[2]), asyncio.Semaphore(50)
            backend.wait = 0.3
            async with httpx.AsyncClient() as client:
                held = asyncio.ensure_future(client.post(f"{address}/v1/predict", **body(colour(0))))
                await asyncio.sleep(0.1)
                await asyncio.gather(*(leave(port, gate) for _ in range(1000)))
                assert (await held).status_code == 200
                backend.wait = 0.0
                for _ in range(600):  # until the server has heard of all
                    answer = await client.post(f"{address}/v1/predict", **body(colour(2)))
                    if answer.status_code == 200 and not service.models["m"].batcher.pending:
                        break
                    assert answer.status_code in (200, 503)
                    await asyncio.sleep(0.1)
                assert best(answer.json()["results"][0]) == "blue"
            await asyncio.sleep(0.1)
            assert service.budget.held == service.models["m"].batcher.pending == 0
            assert not service.models["m"].batcher._groups
            gc.collect()
            calls = sum(type(thing) is Call for thing in gc.get_objects())
            return sum(batch[0] for batch in backend.batches), calls

    computed, calls = asyncio.run(work())
    assert computed < 600
    assert calls == 0


def test_the_longest_waiting_comes_first_whatever_its_size() -> None:
    """A rare size is not starved by a common one."""
    done: list[tuple[int, ...]] = []

    class Slow(ColourBackend):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            time.sleep(0.05)
            done.append(tuple(images.shape))
            return images.mean((2, 3))

    async def work() -> None:
        batcher = Batcher("m", batch_size=2, queue=100, observer=Metrics().observer("m"))
        backend, call = Slow(), Call(deadline=time.monotonic() + 60)
        common, rare = torch.zeros(3, 8, 8), torch.zeros(3, 9, 9)
        tasks = [batcher.compute(backend, common, call) for _ in range(5)]  # type: ignore[arg-type]
        tasks.append(batcher.compute(backend, rare, call))  # type: ignore[arg-type]
        tasks += [batcher.compute(backend, common, call) for _ in range(6)]  # type: ignore[arg-type]
        await asyncio.gather(*tasks)
        await batcher.close()
        assert not batcher.alive

    asyncio.run(work())
    assert [shape[0] for shape in done if shape[2] == 8].count(2) >= 4
    assert next(place for place, shape in enumerate(done) if shape[2] == 9) <= 4


def test_functions_of_their_own_pass_through_what_they_raise() -> None:
    async def work() -> None:
        batcher = Batcher("m", batch_size=2, queue=4, observer=Metrics().observer("m"))
        call = Call(deadline=time.monotonic() + 60)
        assert await batcher.run(lambda: 7, call) == 7
        with pytest.raises(ZeroDivisionError):
            await batcher.run(lambda: 1 // 0, call)
        with pytest.raises(ProblemError, match="deadline"):
            await batcher.run(lambda: 7, Call(deadline=0))
        batcher.pending = 4
        with pytest.raises(ProblemError, match="4 images wait for m"):
            batcher.check(1, 10)
        await batcher.close()

    asyncio.run(work())
