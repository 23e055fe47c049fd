"""Requests to answers: accept, decode in threads, compute together, tell."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from PIL import Image
from starlette.requests import Request
from torch import nn

from davit.cpus import usual_workers
from davit.inference.backends.protocol import Backend
from davit.inference.results import Prepared
from davit.inference.zero_shot import embed_texts
from davit.serving.acceptance import accept
from davit.serving.answers import Wanted, answer
from davit.serving.batcher import Call
from davit.serving.errors import ProblemError
from davit.serving.intake import Upload, read_texts, read_uploads
from davit.serving.limits import ByteBudget, Hold, Limits
from davit.serving.metrics import Metrics
from davit.serving.pictures import Decoder, PixelBudget
from davit.serving.served import ServedModel

Explain = Callable[[nn.Module, Image.Image, int | None], dict[str, Any]]
One = Callable[[Upload, str, Call], Awaitable[dict[str, Any]]]

_log = logging.getLogger(__name__)
_TEXTS = 16  # count as an image
_FINISHERS = 2  # threads that make results, so that these do not wait behind pictures to be decoded


@dataclass(eq=False, kw_only=True)
class Service:
    """All that requests share; but for what threads compute, everything happens in the event loop's thread.

    Attributes:
        limits: of requests.
        metrics: what is counted.
        explain: makes JSON values of a model, a picture and a class; None where explanations are not offered.
        drawing: the JavaScript module with which the page draws what `explain` makes.
        workers: threads that decode; None for one for each processor, at most eight.
        models: by name; empty until they are loaded.
        default: the name that a request without one means.
        ready: whether models are loaded.
        stopping: whether the server was asked to stop.
    """

    limits: Limits
    metrics: Metrics
    explain: Explain | None = None
    drawing: str = ""
    workers: int | None = None
    models: dict[str, ServedModel] = field(default_factory=dict)
    default: str = ""
    ready: bool = False
    stopping: bool = False

    def __post_init__(self) -> None:
        """Make the threads."""
        self.budget = ByteBudget(self.limits.queue_bytes)
        self._decoder = Decoder(self.limits)
        self._decoding = ThreadPoolExecutor(self.workers or usual_workers(), thread_name_prefix="davit-decode")
        self._finishing = ThreadPoolExecutor(_FINISHERS, thread_name_prefix="davit-finish")
        self._finished = PixelBudget(self.limits.pixels)
        self.metrics.queue_bytes.set_function(lambda: self.budget.held)
        self.metrics.ready.set_function(lambda: self.accepts)

    @property
    def accepts(self) -> bool:
        """Whether new requests are taken."""
        return self.ready and not self.stopping

    @property
    def alive(self) -> bool:
        """Whether every model's thread is there."""
        return all(model.alive for model in self.models.values())

    def model(self, name: str | None) -> ServedModel:
        """The model of that name.

        Raises:
            ProblemError: no such model, none yet, or none any more.
        """
        if self.stopping:
            raise ProblemError("shutting_down", "the server is shutting down: ask another one", retry_after=5)
        if not self.ready:
            raise ProblemError("loading", "the models are still being loaded: try again soon", retry_after=2)
        found = self.models.get(self.default if name is None else name)
        if found is None:
            known = ", ".join(self.models)
            raise ProblemError("unknown_model", f"there is no model {ascii(name)[:100]}; those served are {known}")
        return found

    def check(self, name: str | None, patience: float, *, explanation: bool = False) -> None:
        """Refuse a request as early as may be, before its body is read; see `model` and `Batcher.check`."""
        model = self.model(name)
        (model.explainer if explanation else model.batcher).check(1, patience)

    async def predict(self, request: Request, name: str | None, wanted: Wanted, patience: float) -> dict[str, Any]:
        """Answer `/v1/predict`.

        Raises:
            ProblemError: see `errors`.
            ClientGoneError: the client left.
        """
        model = self.model(name)
        backend = model.loaded.backend

        async def one(upload: Upload, called: str, call: Call) -> dict[str, Any]:
            values = await self._answer(model, backend, upload, called, wanted, call)
            return values | {"file": upload.name}

        with self.budget.hold() as hold:
            return await self._pictures(request, model, patience, hold, one)

    async def embed(self, request: Request, name: str | None, patience: float) -> dict[str, Any]:
        """Answer `/v1/embed`, for pictures or texts; raises as `predict`."""
        model = self.model(name)
        loaded = model.loaded
        if not loaded.embeds:
            raise ProblemError(
                "embed_needs_checkpoint",
                f"{model.source.name} is a file of davit export, which gives answers, no vectors: serve its checkpoint",
            )

        async def one(upload: Upload, called: str, call: Call) -> dict[str, Any]:
            embedder = loaded.embedder or await model.batcher.run(loaded.make_embedder, call)
            values = await self._answer(model, embedder, upload, called, Wanted(), call)
            return {"file": upload.name, "embedding": values["embedding"]}

        with self.budget.hold() as hold:
            texts = await read_texts(request, self.limits, hold)
            if texts is not None:
                return await self._texts(request, model, texts, patience, hold)
            return await self._pictures(request, model, patience, hold, one)

    async def explanation(
        self, request: Request, name: str | None, index: int | None, patience: float
    ) -> dict[str, Any]:
        """Answer `/v1/explain`; raises as `predict`."""
        model = self.model(name)
        explain = self._explainer(model)
        classes = model.about(explains=True)["classes"]
        if index is not None and not 0 <= index < classes:
            raise ProblemError("bad_parameter", f"class must lie in 0 to {classes - 1}, got {index}")

        async def work(call: Call) -> dict[str, Any]:
            called = upload.called(0)
            picture = await self._decode(lambda: self._decoder.read(upload.data, called, call.wanted))
            try:
                return await model.explainer.run(lambda: explain(picture, index), call)
            except ValueError as error:
                raise ProblemError("bad_parameter", f"{model.source.name} cannot be explained: {error}") from error
            except RuntimeError as error:
                raise _failed(model, error) from error

        with self.budget.hold() as hold:
            uploads = await read_uploads(request, self.limits, hold)
            if len(uploads) > 1:
                raise ProblemError("too_many_images", f"{len(uploads)} pictures: explanations are made one at a time")
            (upload,) = uploads
            values = await accept(request, model, model.explainer, 1, patience=patience, hold=hold, work=work)
            return {"model": model.source.name, "file": upload.name, **values}

    def _explainer(self, model: ServedModel) -> Callable[[Image.Image, int | None], dict[str, Any]]:
        module, explain = model.loaded.module, self.explain
        if module is None or explain is None:
            raise ProblemError(
                "explain_needs_checkpoint",
                f"{model.source.name} is a file of davit export, into which nobody sees: serve its checkpoint",
            )
        return lambda picture, index: explain(module, picture, index)

    async def _pictures(
        self, request: Request, model: ServedModel, patience: float, hold: Hold, one: One
    ) -> dict[str, Any]:
        """Read the pictures of a request and answer each; a bad one among several has its error in its place."""
        uploads = await read_uploads(request, self.limits, hold)

        async def work(call: Call) -> list[dict[str, Any]]:
            tasks = [one(upload, upload.called(place), call) for place, upload in enumerate(uploads)]
            found = await asyncio.gather(*tasks, return_exceptions=True)
            alone = len(uploads) == 1
            return [self._entry(*pair, alone=alone) for pair in zip(uploads, found, strict=True)]

        images = len(uploads)
        results = await accept(request, model, model.batcher, images, patience=patience, hold=hold, work=work)
        return {"model": model.source.name, "results": results}

    async def _texts(
        self, request: Request, model: ServedModel, texts: list[str], patience: float, hold: Hold
    ) -> dict[str, Any]:
        if (tower := model.loaded.tower) is None:
            raise ProblemError(
                "bad_parameter", f"{model.source.name} is no image-text model: it knows pictures, no texts"
            )

        embed = partial(embed_texts, tower, texts)

        async def work(call: Call) -> list[list[float]]:
            try:
                return (await model.batcher.run(embed, call)).tolist()
            except ValueError as error:
                raise ProblemError("bad_parameter", f"{model.source.name} cannot embed texts: {error}") from error

        images = -(-len(texts) // _TEXTS)
        vectors = await accept(request, model, model.batcher, images, patience=patience, hold=hold, work=work)
        results = [{"text": text, "embedding": vector} for text, vector in zip(texts, vectors, strict=True)]
        return {"model": model.source.name, "results": results}

    async def _answer(
        self, model: ServedModel, backend: Backend, upload: Upload, called: str, wanted: Wanted, call: Call
    ) -> dict[str, Any]:
        """Decode one picture, have it computed among others, and read the output."""
        prepared = await self._decode(
            lambda: self._decoder.prepare(upload.data, called, backend.preprocessing, call.wanted)
        )
        output = await model.batcher.compute(backend, prepared.pixels, call)
        return await self._finish(model, lambda: self._told(backend, output, prepared, wanted, call))

    def _told(self, backend: Backend, output: Any, prepared: Prepared, wanted: Wanted, call: Call) -> dict[str, Any]:
        large = backend.kind in ("detection", "segmentation")  # their results are as large as the picture
        with self._finished(prepared.size[0] * prepared.size[1] if large else 0):
            return answer(backend, output, prepared, wanted, call.wanted)

    async def _decode(self, function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._decoding, function)

    async def _finish(self, model: ServedModel, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._finishing, function)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise _failed(model, error) from error

    def _entry(self, upload: Upload, result: dict[str, Any] | BaseException, *, alone: bool) -> dict[str, Any]:
        """What stands in the place of one picture; an error that concerns more than it is raised."""
        if not isinstance(result, BaseException):
            return result
        if alone or not isinstance(result, ProblemError) or result.problem.status >= 500:
            raise result
        self.metrics.rejections.labels(result.problem.type).inc()
        return {"file": upload.name, **result.problem.to_json()}


def _failed(model: ServedModel, error: Exception) -> ProblemError:
    """Tell the log what went wrong, and the client that something did."""
    name = model.source.name
    _log.error("%s gave no usable answer: %r", name, error)
    return ProblemError("model_failed", f"{name} gave no usable answer: whoever runs the server finds in its log why")
