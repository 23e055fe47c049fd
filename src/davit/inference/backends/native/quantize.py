"""Which layers a model computes in int8: found by measuring what each costs in accuracy."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from davit.inference.backends.native.engine import NativeEngine
from davit.inference.backends.native.quantization import Quantization
from davit.inference.backends.native.weights import NativeModel, NativeWeights, layer_names, native_weights
from davit.models.classifier import Classifier
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone

RANKED_IMAGES = 16  # each layer is measured on so many, all together on all
POSITIONS = 1024  # of a map, about: evenly spread over it


def quantize(
    model: nn.Module, batches: Iterable[Tensor], *, max_error: float = 0.05, threads: int | None = None
) -> Quantization:
    """Choose the layers that a model computes in int8.

    Every layer is measured alone. Errors of different layers add up like noise, in squares: the worst stay float32
    until what is left stays within `max_error`.

    Args:
        model: a trained classifier, backbone, detector or segmenter; what counts are logits, or the backbone's maps.
        batches: images as the model takes them, (B, C, H, W) each; some dozens in all, of the data it is meant for.
        max_error: root mean square error of the outputs, over their standard deviation.
        threads: of the engine; None takes as many as PyTorch.

    Raises:
        NativeError: the engine cannot be had on this machine.
        ValueError: no images, outputs that are no numbers, or an architecture that the engine does not know.
    """
    native = native_weights(native_part(model.eval()))
    images = [batch for batch in batches if len(batch)]
    if not images:
        raise ValueError("int8 takes images of the data that the model is meant for, to choose the layers by; got none")
    errors = _errors_alone(native, _first(images, RANKED_IMAGES), threads)
    wanted = _outputs(NativeEngine(native, threads), images)
    layers = sorted(errors, key=lambda name: (errors[name], name))
    kept: list[str] = []
    while layers and math.hypot(*(errors[name] for name in layers)) > max_error:
        kept.append(layers.pop())
    measured = 0.0
    while layers and (measured := _error(native, layers, images, wanted, threads)) > max_error:
        kept.append(layers.pop())
    layers = [name for name in errors if name in layers]  # in the order of the model
    return Quantization(
        layers=tuple(layers),
        kept=tuple(kept),
        errors=tuple(errors[name] for name in [*layers, *kept]),
        error=measured if layers else 0.0,
        images=sum(map(len, images)),
    )


def _errors_alone(native: NativeWeights, images: list[Tensor], threads: int | None) -> dict[str, float]:
    wanted = _outputs(NativeEngine(native, threads), images)
    return {name: _error(native, [name], images, wanted, threads) for name in layer_names(native.config)}


def _error(
    native: NativeWeights, layers: Sequence[str], images: list[Tensor], wanted: list[Tensor], threads: int | None
) -> float:
    """How far off the outputs are with some layers in int8.

    Raises:
        ValueError: they are no numbers, or all the same.
    """
    engine = NativeEngine(native, threads, Quantization(layers=tuple(layers)))
    error = _relative_error(_outputs(engine, images), wanted, bool(engine.classes))
    if not math.isfinite(error):
        raise ValueError(
            "the model's outputs on the images for int8 are no finite numbers, or all the same; give others, or a "
            "trained model"
        )
    return error


def native_part(model: nn.Module) -> NativeModel:
    """The part of a model that the engine computes: all of a classifier or backbone, the backbone of others.

    Raises:
        ValueError: there is none.
    """
    if isinstance(model, Classifier | DaViT | DenseBackbone):
        return model
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, DaViT):
        raise ValueError(
            f"{type(model).__name__} is no classifier, detector or segmenter; the native engine has no part in it"
        )
    return backbone


def _first(batches: list[Tensor], count: int) -> list[Tensor]:
    found: list[Tensor] = []
    for batch in batches:
        if left := count - sum(map(len, found)):
            found.append(batch[:left])
    return found


def _outputs(engine: NativeEngine, batches: list[Tensor]) -> list[Tensor]:
    """Logits of all images, or some positions of each map: (rows, channels)."""
    answers = [engine(batch) for batch in batches]
    parts = [[_rows(x) for x in ([answer] if isinstance(answer, Tensor) else answer)] for answer in answers]
    return [torch.cat(rows) for rows in zip(*parts, strict=True)]


def _rows(x: Tensor) -> Tensor:  # (B, classes) or (B, C, H, W)
    if x.ndim == 2:
        return x
    flat = x.flatten(2)
    step = -(-flat.shape[2] // POSITIONS)
    return flat[..., ::step].mT.flatten(0, 1)


def _relative_error(found: list[Tensor], wanted: list[Tensor], logits: bool) -> float:
    """Root mean square error over the standard deviation: of all logits, or of each channel over a map's positions."""
    ratios: list[Tensor] = []
    for ours, right in zip(found, wanted, strict=True):
        middle = right.mean() if logits else right.mean(0)
        ratios.append((ours - right).square().mean() / (right - middle).square().mean())
    return float(torch.stack(ratios).mean().sqrt())
