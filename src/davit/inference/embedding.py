"""Vectors of images by any model, and of texts by image-text models."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from davit.inference.backends import BackendName
from davit.inference.backends.choosing import make_backend
from davit.inference.backends.eager import choose_device
from davit.inference.backends.opening import exported_format
from davit.inference.backends.protocol import Backend
from davit.inference.stream_results import fingerprint
from davit.inference.zero_shot import embed_texts
from davit.models.clip import ImageTextModel
from davit.models.config import DaViTConfig
from davit.models.zero_shot import Embedder
from davit.preprocessing import Preprocessing
from davit.weights.catalog import WEIGHTS
from davit.weights.load import LoadedModel, load
from davit.weights.source import find_file


def load_embedder(
    source: str | Path,
    *,
    variant: str | None = None,
    size: int | None = None,
    device: str | torch.device | None = None,
    backend: BackendName = "eager",
    tell: Callable[[str], None] | None = None,
) -> Backend:
    """Open weights as a backend that gives a vector for each image; see `Embedder` and `make_backend`.

    Args:
        source: what `davit.load` takes; backbones without a head, too.
        variant: the architecture, for weights that leave it open.
        size: side of the images, for weights that do not say how images are prepared.
        device: where to compute; None takes the graphics card if there is one.
        backend: what computes.
        tell: called with one line once "auto" has chosen.

    Raises:
        ValueError: unknown or unusable weights, a file of `davit export`, or weights that do not say how images are
            prepared and no size.
        OSError: the file cannot be read.
    """
    return make_backend(Embedder(load_features(source, variant, size)), backend, device, tell=tell)


def load_features(source: str | Path, variant: str | None = None, size: int | None = None) -> LoadedModel:
    """Load weights with the preprocessing that their features need; see `load_embedder`."""
    if exported_format(source):
        raise ValueError(f"{source} is a file of davit export, which gives answers, not features: take its checkpoint")
    model = load(source, variant=variant)
    if model.preprocessing is None:
        if size is None:
            raise ValueError(f"{source} does not say how images are prepared for it: give their side with --size")
        config = model.config if isinstance(model.config, DaViTConfig) else model.config.backbone
        model.preprocessing = Preprocessing.imagenet(size, config.in_channels)
    return model


def embed_with(
    model: LoadedModel, texts: Sequence[str], source: str | Path, device: str | torch.device | None = None
) -> torch.Tensor:
    """The vector of each text, of length 1, (N, embedding).

    Raises:
        ValueError: a model that knows no texts, or the tokenizer is not installed.
    """
    if not isinstance(model, ImageTextModel):
        raise ValueError(f"{source} is no image-text model, so it knows pictures only, no texts")
    return embed_texts(model.to(choose_device(device)), texts)


def fingerprint_of(source: str | Path) -> str:
    """What tells a model from any other: SHA-256 over its file, or the revision of public weights.

    Raises:
        ValueError: a folder with no weights or with several.
        OSError: the file cannot be read.
    """
    if (entry := WEIGHTS.get(str(source))) is not None:
        return f"{entry.name} {entry.revision}"
    path = find_file(source)
    if not path.is_file():
        raise ValueError(f"{source} is not there, and no name of davit models either")
    return fingerprint(path)
