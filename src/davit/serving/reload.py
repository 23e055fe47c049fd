"""Models exchanged for newer files while they are served."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from davit.serving.batcher import Batcher
from davit.serving.served import Loaded, ModelSource, ServedModel, Signature, open_model
from davit.serving.service import Service

_log = logging.getLogger(__name__)


class Loader:
    """Opens models beside the event loop, one at a time."""

    def __init__(self, service: Service, *, batch_size: int, threads: int | None, watch: float) -> None:
        """Load for a service.

        Args:
            service: gets the models.
            batch_size: most images computed at once.
            threads: of each computation; None for as many as PyTorch takes.
            watch: seconds between looks at the files; 0 never looks.
        """
        self._service, self._batch_size, self._threads, self._every = service, batch_size, threads, watch
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="davit-load")
        self._asked = asyncio.Event()
        self._tried: dict[str, Signature] = {}

    async def load(self, sources: list[ModelSource], tell: Callable[[str], None]) -> None:
        """Open all models and make the service ready.

        Raises:
            ValueError: a model cannot be used.
            OSError: a file cannot be read.
        """
        models: dict[str, ServedModel] = {}
        for source in sources:
            loaded, signature = await self._open(source, tell)
            models[source.name] = self._serve(source, loaded, signature)
        if any(source.labels for source in sources) and not any(model.loaded.tower for model in models.values()):
            raise ValueError("labels are for image-text models, which know texts, and none is served: leave them out")
        self._service.models.update(models)
        self._service.ready = True

    def _serve(self, source: ModelSource, loaded: Loaded, signature: Signature) -> ServedModel:
        limits, metrics = self._service.limits, self._service.metrics
        observer = metrics.observer(source.name)
        batcher = Batcher(
            source.name,
            batch_size=self._batch_size,
            queue=limits.queue_images,
            observer=observer,
            threads=self._threads,
        )
        explainer = Batcher(
            f"{source.name}'s explanations",
            batch_size=1,
            queue=limits.queue_explanations,
            observer=observer,
            threads=self._threads,
        )
        metrics.queue_images.labels(source.name).set_function(lambda: batcher.pending)
        for outcome in ("ok", "failed"):
            metrics.reloads.labels(source.name, outcome)
        return ServedModel(source, loaded, batcher=batcher, explainer=explainer, signature=signature)

    def reload(self) -> None:
        """Open all files anew soon, changed or not."""
        self._tried.clear()
        for model in self._service.models.values():
            model.signature = ()
        self._asked.set()

    async def watch(self) -> None:
        """Go on looking for newer files, until cancelled."""
        loop = asyncio.get_running_loop()
        seen: dict[str, Signature] = {}
        while True:
            asked = False
            with suppress(TimeoutError):
                asked = await asyncio.wait_for(self._asked.wait(), self._every or None)
            self._asked.clear()
            for name, model in self._service.models.items():
                found = await loop.run_in_executor(self._pool, _signature, model.source)  # files may be far away
                settled = asked or found == seen.get(name)  # a file that still grows is left alone
                seen[name] = found
                if found and settled and found not in (model.signature, self._tried.get(name)):
                    await self._exchange(model, found)

    async def _exchange(self, model: ServedModel, signature: Signature) -> None:
        name, reloads = model.source.name, self._service.metrics.reloads
        self._tried[name] = signature
        try:
            loaded, signature = await self._open(model.source, _log.info)
        except Exception as error:  # a broken file may raise anything, and the old model goes on
            reloads.labels(name, "failed").inc()
            _log.error("%s: the new file cannot be used, and the old model goes on: %s", name, _one_line(error))
            return
        model.loaded, model.signature = loaded, signature
        reloads.labels(name, "ok").inc()
        _log.info("%s: loaded anew from %s", name, model.source.source)

    async def _open(self, source: ModelSource, tell: Callable[[str], None]) -> tuple[Loaded, Signature]:
        def work() -> tuple[Loaded, Signature]:
            before = source.signature()
            return open_model(source, tell), before

        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _signature(source: ModelSource) -> Signature:
    try:
        return source.signature()
    except (OSError, ValueError):  # it is just being exchanged
        return ()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
