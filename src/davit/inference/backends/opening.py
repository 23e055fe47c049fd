"""The backend that a file asks for."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from davit.inference.backends import BackendName
from davit.inference.backends.aot_package import is_torch_package
from davit.inference.backends.choosing import make_backend
from davit.inference.backends.eager import choose_device, refuse_image_text
from davit.inference.backends.native.artefact import is_native_file, read_native
from davit.inference.backends.onnx_header import is_onnx
from davit.inference.backends.openvino_ir import is_openvino
from davit.inference.backends.protocol import Backend
from davit.inference.zero_shot import Labels, zero_shot
from davit.models.clip import ImageTextModel
from davit.models.create import Model
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.models.zero_shot import ZeroShotClassifier
from davit.weights.load import load

Format = Literal["onnx", "openvino", "torch", "native"]

ENGINES: dict[Format, str] = {
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torch": "PyTorch's AOTInductor",
    "native": "the native engine",
}


def exported_format(source: str | Path) -> Format | None:
    """The format of a file of `davit export`, which may be damaged; None for anything else, as weights."""
    if is_native_file(source):
        return "native"
    if is_onnx(source):
        return "onnx"
    if is_openvino(source):
        return "openvino"
    return "torch" if is_torch_package(source) else None


def open_backend(
    source: str | Path,
    *,
    variant: str | None = None,
    device: str | torch.device | None = None,
    backend: BackendName = "eager",
    tell: Callable[[str], None] | None = None,
    trust: bool = False,
    labels: Labels | None = None,
) -> Backend:
    """Open a file of `davit export` by its engine, and weights by a backend.

    Args:
        source: a file of `davit export`, or what `davit.load` takes.
        variant: the architecture, for weights that leave it open.
        device: where to compute; None takes the graphics card if there is one.
        backend: what computes weights, see `make_backend`.
        tell: called with one line once "auto" has chosen.
        trust: open files that are code, too: those of AOTInductor.
        labels: what an image-text model is to look for, which makes a classifier of it.

    Raises:
        ValueError: unknown, damaged or unusable weights, a backbone without a head, a backend that cannot be had, or a
            file with code that is not trusted.
        OSError: the file cannot be read.
    """
    format = exported_format(source)
    if format is None:
        model = load_with_head(source, variant) if labels is None else load_zero_shot(source, labels, variant)
        return make_backend(model, backend, device, tell=tell)
    if labels is not None:
        raise _names_already(source)
    if variant is not None:
        raise ValueError(f"{source} says itself what it is; leave the variant out")
    if backend == "native" and format != "native":
        raise ValueError(f"{source} is computed by {ENGINES[format]}; the native backend takes a checkpoint")
    return open_exported(source, format, device, trust=trust)


def open_exported(
    source: str | Path, format: Format, device: str | torch.device | None = None, *, trust: bool = False
) -> Backend:
    """Open a file of a known format; see `open_backend`."""
    if format == "onnx":
        from davit.inference.backends.onnx_runtime import OnnxBackend

        return OnnxBackend(source, device=device)
    if device is not None and choose_device(device).type != "cpu":
        raise ValueError(
            f"device {str(device)!r} cannot be used: {ENGINES[format]} runs {source} on the CPU. Try 'cpu'"
        )
    if format == "openvino":
        from davit.inference.backends.openvino_ir import OpenVinoBackend

        return OpenVinoBackend(source)
    if format == "torch":
        from davit.inference.backends.aot_package import TorchBackend

        return TorchBackend(source, trust=trust)
    return read_native(source)


def load_zero_shot(source: str | Path, labels: Labels, variant: str | None = None) -> ZeroShotClassifier:
    """Load an image-text model as a classifier of labels.

    Raises:
        ValueError: as `davit.load`, another kind of model, or the tokenizer is not installed.
        OSError: the file cannot be read.
    """
    model = load(source, variant=variant)
    if not isinstance(model, ImageTextModel):
        raise _names_already(source)
    return zero_shot(model, labels)


def _names_already(source: str | Path) -> ValueError:
    return ValueError(f"labels are for image-text models, which know texts; {source} is none: leave them out")


def load_with_head(source: str | Path, variant: str | None = None) -> Model:
    """Load weights that give answers.

    Raises:
        ValueError: as `davit.load`, or a backbone without a head.
        OSError: the file cannot be read.
    """
    model = load(source, variant=variant)
    if isinstance(model, (DaViT, DenseBackbone)):
        raise ValueError(f"{source} is a backbone without a head; it gives features, not classes, boxes or masks")
    refuse_image_text(model)
    return model
