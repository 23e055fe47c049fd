"""Servers inside a test's event loop, with small models or with backends that wait, fail and count."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from uvicorn import Config

from davit.inference.backends.eager import EagerBackend
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.preprocessing import Preprocessing
from davit.serving.address import address_of, open_socket
from davit.serving.app import create_app
from davit.serving.batcher import Batcher
from davit.serving.limits import Limits
from davit.serving.metrics import Metrics
from davit.serving.protocol import timed_protocol
from davit.serving.running import GracefulServer
from davit.serving.served import Loaded, ModelSource, ServedModel, open_model
from davit.serving.service import Explain, Service
from davit.weights.save import save

CLASSES = ("red", "green", "blue")


@dataclass(eq=False)
class ColourBackend:
    """Names the strongest colour of a picture, and does what else a test wants.

    Attributes:
        wait: seconds of a batch.
        fails: whether a batch raises.
        batches: sizes and shapes of the batches so far.
    """

    wait: float = 0.0
    fails: Callable[[torch.Tensor], bool] = lambda _: False
    size: tuple[int, int] = (8, 8)
    fit: str = "crop"
    batches: list[tuple[int, ...]] = field(default_factory=list)
    kind: str = "classification"
    classes: tuple[str, ...] = CLASSES
    device: str = "cpu"
    config: Any = None

    @property
    def preprocessing(self) -> Preprocessing:
        """Small pictures, not normalised."""
        return Preprocessing(size=self.size, crop=1.0, fit=self.fit, mean=(0.0,) * 3, std=(1.0,) * 3)  # type: ignore[arg-type]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Ten times the mean of each colour."""
        self.batches.append(tuple(images.shape))
        time.sleep(self.wait)
        if self.fails(images):
            raise RuntimeError("the card has gone /secret/path")
        return 10 * images.mean((2, 3))


def colour_model(backend: ColourBackend | None = None) -> Loaded:
    return Loaded(backend=backend or ColourBackend(), engine="test")  # type: ignore[arg-type]


def small_classifier(path: Path, config: DaViTConfig, *, seed: int = 0, names: str = "abcde") -> Path:
    torch.manual_seed(seed)
    model = Classifier(ClassifierConfig(backbone=config, num_classes=len(names)))
    model.preprocessing = Preprocessing.imagenet(64)
    model.classes = tuple(names)
    save(model.eval(), path)
    return path


def opened(path: Path | str, **fields: Any) -> Loaded:
    return open_model(ModelSource(name="m", source=str(path), **{"backend": "eager", **fields}), print)


@asynccontextmanager
async def running(
    models: Mapping[str, Loaded], *, limits: Limits | None = None, batch_size: int = 8, explain: Explain | None = None
) -> AsyncGenerator[Service]:
    """A service with models, in this event loop."""
    service = Service(limits=limits or Limits(), metrics=Metrics(), explain=explain, workers=2)
    for name, loaded in models.items():
        batcher = Batcher(
            name,
            batch_size=batch_size,
            queue=service.limits.queue_images,
            observer=service.metrics.observer(name),
            threads=1,
        )
        explainer = Batcher(f"{name} explained", batch_size=1, queue=4, observer=service.metrics.observer(name))
        source = ModelSource(name=name, source=f"{name}.safetensors")
        service.models[name] = ServedModel(source, loaded, batcher=batcher, explainer=explainer)
    service.default, service.ready = next(iter(models), ""), True
    try:
        yield service
    finally:
        for model in service.models.values():
            await model.close()


@asynccontextmanager
async def client_of(service: Service, keys: Sequence[str] = ()) -> AsyncGenerator[httpx.AsyncClient]:
    """Ask a service without a socket."""
    transport = httpx.ASGITransport(create_app(service, keys))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        yield client


@asynccontextmanager
async def listening(service: Service, keys: Sequence[str] = ()) -> AsyncGenerator[str]:
    """Ask a service over loopback; gives its address."""
    config = Config(
        create_app(service, keys),
        http=timed_protocol(service.limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = GracefulServer(config, service)
    with open_socket("127.0.0.1", 0) as taken:
        task = asyncio.ensure_future(server.serve(sockets=[taken]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield address_of(taken)
        finally:
            server.should_exit = True
            with suppress(asyncio.CancelledError):
                await task


def eager_of(loaded: Loaded) -> EagerBackend:
    assert isinstance(loaded.backend, EagerBackend)
    return loaded.backend
