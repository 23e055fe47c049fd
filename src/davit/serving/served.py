"""Models that are served: opened, checked, and exchanged for a newer file between two batches."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from davit.inference.backends import BackendName
from davit.inference.backends.choosing import AutoBackend, make_backend
from davit.inference.backends.native.backend import NativeBackend
from davit.inference.backends.opening import exported_format, open_exported
from davit.inference.backends.protocol import Backend
from davit.inference.results import Prepared, read_outputs
from davit.inference.zero_shot import Labels, embed_texts, zero_shot
from davit.models.clip import ImageTextModel
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.models.zero_shot import Embedder
from davit.serving.batcher import Batcher
from davit.weights.load import load
from davit.weights.source import find_file

_CHECKED = 2  # images of the check before a model is served
Signature = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """What a model is made of.

    Attributes:
        name: as requests call it.
        source: a checkpoint, a file of `davit export`, or a name of `davit models`.
        variant: the architecture, for weights that leave it open.
        labels: what an image-text model looks for, None for its vectors; of no meaning for others.
        backend: what computes a checkpoint.
        device: where; None takes the graphics card if there is one.
        trust: open files that are code.
    """

    name: str
    source: str
    variant: str | None = None
    labels: Labels | None = None
    backend: BackendName = "auto"
    device: str | None = None
    trust: bool = False

    def signature(self) -> Signature:
        """What changes when the file does; empty for what is no file."""
        path = Path(self.source)
        if not path.exists():
            return ()
        path = find_file(path)
        parts = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
        return tuple((status.st_mtime_ns, status.st_size, status.st_ino) for status in (part.stat() for part in parts))


@dataclass(eq=False, kw_only=True)
class Loaded:
    """One state of a model's file, ready to compute.

    Attributes:
        backend: gives the answers.
        engine: what computes, in a word.
        module: the model in PyTorch; None for files of `davit export`.
        tower: the image-text model behind the backend, where that is what it is.
    """

    backend: Backend
    engine: str
    module: nn.Module | None = None
    tower: ImageTextModel | None = None
    _make_embedder: Callable[[], Backend] | None = None
    _embedder: Backend | None = None

    @property
    def embeds(self) -> bool:
        """Whether vectors can be had."""
        return self.backend.kind == "embedding" or self._make_embedder is not None

    @property
    def embedder(self) -> Backend | None:
        """What gives vectors, if it has been made."""
        return self.backend if self.backend.kind == "embedding" else self._embedder

    def make_embedder(self) -> Backend:
        """Make what gives vectors, once; takes a while, and belongs where the model computes."""
        if self._embedder is None:
            assert self._make_embedder is not None
            self._embedder = self._make_embedder()
        return self._embedder


def open_model(source: ModelSource, tell: Callable[[str], None]) -> Loaded:
    """Open a model and see it compute.

    Raises:
        ValueError: damaged or unusable weights, or weights that do not compute.
        OSError: the file cannot be read.
    """
    loaded = _open(source, tell)
    _check(loaded, source)
    if loaded.tower is not None:
        try:
            embed_texts(loaded.tower, ["a picture"])  # loads the tokenizer, which takes seconds
        except ValueError as error:
            tell(f"{source.name} cannot embed texts: {error}")
    if isinstance(loaded.backend, AutoBackend) and loaded.backend.choice:
        loaded.engine = loaded.backend.choice.backend
    return loaded


def _open(source: ModelSource, tell: Callable[[str], None]) -> Loaded:
    if format := exported_format(source.source):
        return Loaded(backend=open_exported(source.source, format, source.device, trust=source.trust), engine=format)
    model = load(source.source, variant=source.variant)
    tower = model if isinstance(model, ImageTextModel) else None
    answering: nn.Module = model
    if tower is not None:
        answering = Embedder(tower) if source.labels is None else zero_shot(tower, source.labels)
    elif isinstance(model, DaViT | DenseBackbone):
        answering = Embedder(model)
    backend = make_backend(answering, source.backend, source.device, tell=tell)
    engine = "native" if isinstance(backend, NativeBackend) else "eager"
    return Loaded(
        backend=backend,
        engine=engine,
        module=answering,
        tower=tower,
        _make_embedder=lambda: make_backend(Embedder(model), source.backend, source.device),
    )


def _check(loaded: Loaded, source: ModelSource) -> None:
    """Compute noise; this also settles what "auto" takes, before the first request waits for it."""
    backend = loaded.backend
    channels = backend.preprocessing.channels
    if channels not in (1, 3):
        raise ValueError(f"{source.source} takes {channels} channels, and pictures have 1 or 3: it cannot be served")
    if loaded.module is not None:
        bad = [name for name, value in loaded.module.named_parameters() if not bool(value.isfinite().all())]
        if bad:
            raise ValueError(f"{source.source} has weights that are no finite numbers: {', '.join(bad[:3])}")
    size = backend.preprocessing.size
    noise = torch.rand(_CHECKED, channels, *size, generator=torch.Generator().manual_seed(0))
    images = [Prepared(pixels=pixels, size=size) for pixels in noise]
    try:
        read_outputs(backend.kind, backend(noise), images, backend.classes, 1)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(f"{source.source} does not compute: {str(error).splitlines()[0]}") from error


class ServedModel:
    """A name, the model behind it now, and its queue.

    Attributes:
        source: what it is made of.
        loaded: the model; a request keeps the one that it was accepted with.
        batcher: computes.
        explainer: makes explanations, beside, for each takes as long as many answers.
        signature: of the file that was loaded.
    """

    def __init__(
        self, source: ModelSource, loaded: Loaded, *, batcher: Batcher, explainer: Batcher, signature: Signature = ()
    ) -> None:
        """Serve."""
        self.source, self.loaded, self.batcher, self.explainer = source, loaded, batcher, explainer
        self.signature = signature

    @property
    def waiting(self) -> bool:
        """Whether anything accepted is not answered."""
        return bool(self.batcher.pending or self.explainer.pending)

    @property
    def alive(self) -> bool:
        """Whether its threads are there."""
        return self.batcher.alive and self.explainer.alive

    async def close(self) -> None:
        """End its threads once all that waits is done."""
        await self.batcher.close()
        await self.explainer.close()

    def about(self, *, explains: bool) -> dict[str, Any]:
        """Return what `/v1/models` says, as JSON values."""
        backend = self.loaded.backend
        return {
            "name": self.source.name,
            "kind": backend.kind,
            "classes": len(backend.classes) or int(getattr(backend.config, "num_classes", 0)),
            "size": list(backend.preprocessing.size),
            "backend": self.loaded.engine,
            "explain": explains and self.loaded.module is not None,
            "file": Path(self.source.source).name,
        }

    def bytes_of_image(self) -> int:
        """Most bytes that a prepared picture takes."""
        height, width = self.loaded.backend.preprocessing.size
        return 4 * self.loaded.backend.preprocessing.channels * height * width
