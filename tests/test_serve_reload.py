"""Models exchanged for newer files while they are asked."""

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

import davit
from davit.models.config import DaViTConfig
from davit.serving.limits import Limits
from davit.serving.metrics import Metrics
from davit.serving.reload import Loader
from davit.serving.served import ModelSource, open_model
from davit.serving.service import Service
from davit.weights.save import save
from odd_pictures import encode
from small_detectors import TINY
from small_servers import client_of, small_classifier

RED = encode(np.full((64, 64, 3), (250, 9, 9), np.uint8), "PNG")


def labels(answer: httpx.Response) -> str:
    return "".join(sorted(each["label"] for each in answer.json()["results"][0]["top"]))


def watched(
    path: Path, talk: Callable[[httpx.AsyncClient, Loader, Service], Awaitable[None]], *, every: float = 0.1
) -> None:
    async def work() -> None:
        service = Service(limits=Limits(), metrics=Metrics(), default="m", workers=1)
        loader = Loader(service, batch_size=4, threads=1, watch=every)
        await loader.load([ModelSource(name="m", source=str(path), backend="eager")], print)
        watching = asyncio.ensure_future(loader.watch())
        async with client_of(service) as client:
            await talk(client, loader, service)
        watching.cancel()
        for model in service.models.values():
            await model.close()

    asyncio.run(work())


async def ask(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/v1/predict", content=RED, headers={"content-type": "image/png"})


async def reloads(client: httpx.AsyncClient, outcome: str, count: int) -> None:
    """Wait until so many reloads were counted."""
    line = f'davit_reloads_total{{model="m",outcome="{outcome}"}} {count}.0'
    for _ in range(300):
        if line in (await client.get("/metrics")).text:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"no {line}")


def test_files_are_exchanged_under_load_without_a_lost_request(tmp_path: Path) -> None:
    """Better models come five times, broken ones between; every request is answered by one model or the other."""
    first = small_classifier(tmp_path / "served.safetensors", TINY, names="abcde")
    second = small_classifier(tmp_path / "second.safetensors", TINY, seed=1, names="vwxyz")
    copy = shutil.copy(first, tmp_path / "first.safetensors")
    answers: list[httpx.Response] = []

    async def talk(client: httpx.AsyncClient, _loader: Loader, _service: Service) -> None:
        stop = asyncio.Event()

        async def load() -> None:
            while not stop.is_set():
                answers.append(await ask(client))

        clients = [asyncio.ensure_future(load()) for _ in range(4)]
        for round_ in range(5):
            good = second if round_ % 2 == 0 else Path(copy)
            new = shutil.copy(good, tmp_path / "new")
            os.utime(new, (round_, round_))
            Path(new).replace(first)
            await reloads(client, "ok", round_ + 1)
            assert labels(await ask(client)) == ("vwxyz" if round_ % 2 == 0 else "abcde")
            first.write_bytes(good.read_bytes()[: 5000 + round_])
            await reloads(client, "failed", round_ + 1)
            assert labels(await ask(client)) == ("vwxyz" if round_ % 2 == 0 else "abcde")
        stop.set()
        await asyncio.gather(*clients)

    watched(first, talk)
    assert len(answers) > 20
    assert {answer.status_code for answer in answers} == {200}
    assert {labels(answer) for answer in answers} == {"abcde", "vwxyz"}


def test_asked_to_it_loads_anew_what_has_not_changed(tmp_path: Path) -> None:
    path = small_classifier(tmp_path / "m.safetensors", TINY)

    async def talk(client: httpx.AsyncClient, loader: Loader, service: Service) -> None:
        before = service.models["m"].loaded
        await asyncio.sleep(0.2)
        assert service.models["m"].loaded is before
        loader.reload()
        await reloads(client, "ok", 1)
        assert service.models["m"].loaded is not before
        path.unlink()
        await asyncio.sleep(0.2)
        assert (await ask(client)).status_code == 200

    watched(path, talk, every=0)


def test_what_does_not_compute_is_not_served(tmp_path: Path, small_config: DaViTConfig) -> None:
    path = small_classifier(tmp_path / "m.safetensors", small_config)
    model = davit.load(path)
    next(model.parameters()).data[0] = float("nan")
    save(model, path)
    with pytest.raises(ValueError, match="no finite numbers"):
        open_model(ModelSource(name="m", source=str(path), backend="eager"), print)
