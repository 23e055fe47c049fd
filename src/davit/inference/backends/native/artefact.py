"""The native engine's file: weights as the engine takes them, int8 ones as int8, and everything that a predictor needs.

One safetensors file. Its header says what a checkpoint's says (kind, config, preprocessing, class names, provenance),
which layers are int8, and carries a SHA-256 over the whole file. Tensors named `native.` are the engine's, those named
`head.` the rest of a detector or segmenter. Any reader of safetensors can read the file.
"""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from davit.atomic import atomic_write
from davit.inference.backends.native.backend import NativeBackend
from davit.inference.backends.native.engine import NativeEngine
from davit.inference.backends.native.quantization import Quantization
from davit.inference.backends.native.stored import KEY, NO_DIGEST, VERSION, NativeTensors, StoredTensors
from davit.inference.backends.native.weights import NativeWeights, native_weights, with_codes
from davit.models.classifier import Classifier
from davit.models.create import Model, make_model
from davit.models.detector import Detector
from davit.models.upernet import Segmenter
from davit.preprocessing import Preprocessing
from davit.records import from_json, to_json
from davit.weights.checkpoint import CONFIGS, HEADER_LIMIT, CheckpointError, Header
from davit.weights.load import LoadedModel
from davit.weights.save import header_of

SUFFIX = ".davit"


def write_native(
    path: str | Path,
    model: LoadedModel,
    quantization: Quantization | None = None,
    *,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a model for the native engine, atomically.

    Args:
        path: a name that ends in `.davit`.
        model: a classifier, detector or segmenter with its preprocessing.
        quantization: which layers are int8; None for none.
        provenance: where the weights come from; any JSON values.

    Raises:
        ValueError: another kind of model or ending, no preprocessing, or an architecture that the engine does not know.
        OSError: the disk is full or refuses; a file that was there stays.
    """
    from safetensors.torch import save

    if Path(path).suffix != SUFFIX:
        raise ValueError(f"the name of a file for the native engine ends in {SUFFIX}, got {path}")
    if not isinstance(model, Classifier | Detector | Segmenter):
        raise ValueError(f"a file for the native engine holds a model with a head, got a {type(model).__name__}")
    if model.preprocessing is None:
        raise ValueError("this model does not say how images are prepared for it: set its .preprocessing")
    native = _native_weights(model, quantization)
    tensors = {f"native.{name}": tensor for name, tensor in native.tensors.items()}
    tensors |= {f"head.{name}": tensor.cpu().contiguous() for name, tensor in _head(model).items()}
    raw = save(tensors, _metadata(header_of(model, provenance or {}), quantization))
    digest = hashlib.sha256(raw).hexdigest()
    with atomic_write(path) as file:
        file.write(raw.replace(NO_DIGEST.encode(), digest.encode(), 1))


def is_native_file(path: str | Path) -> bool:
    """Whether a file is meant for the native engine: by its name, or by its header (which may be damaged)."""
    if Path(path).suffix.lower() == SUFFIX:
        return True
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        return f'"{KEY}"'.encode() in file.read(min(length, HEADER_LIMIT))


def read_native(path: str | Path, *, threads: int | None = None) -> NativeBackend:
    """Open a file of `write_native` and verify every bit of it.

    Args:
        path: the file.
        threads: of the engine; None takes as many as PyTorch.

    Raises:
        CheckpointError: damaged, of a newer version, or none of ours.
        NativeError: the engine cannot be had on this machine.
        OSError: it cannot be read.
    """
    with StoredTensors(Path(path)) as tensors:
        return _opened(Path(path), tensors, threads)


def _opened(path: Path, tensors: StoredTensors, threads: int | None) -> NativeBackend:
    header, quantization = _described(path, tensors.metadata)
    with torch.device("meta"):
        model = make_model(header.config)  # type: ignore[bad-argument-type]  # `_read` refuses backbones
    model.preprocessing, model.classes = header.preprocessing, header.classes
    wanted = _native_weights(model, quantization)
    shapes = {f"native.{name}": tensor for name, tensor in wanted.tensors.items()}
    shapes |= {f"head.{name}": tensor for name, tensor in _head(model).items()}
    if {name: (x.dtype, x.shape) for name, x in shapes.items()} != tensors.described():
        raise CheckpointError(f"{path}: these are not the tensors of its architecture; export it anew")
    weights = dataclasses.replace(wanted, tensors=NativeTensors(tensors, tuple(wanted.tensors)))
    if not isinstance(model, Classifier):
        head = {name.removeprefix("head."): tensors[name] for name in shapes if name.startswith("head.")}
        model.load_state_dict(head, strict=False, assign=True)
    engine = NativeEngine(weights, threads)
    tensors.check_unchanged()
    return NativeBackend.of_engine(model, engine, quantization)


def _native_weights(model: Model, quantization: Quantization | None) -> NativeWeights:
    part = model if isinstance(model, Classifier) else model.backbone
    return with_codes(native_weights(part), quantization.layers if quantization else ())


def _head(model: Model) -> dict[str, Tensor]:
    """What the engine does not compute."""
    if isinstance(model, Classifier):
        return {}
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("backbone.")}


def _metadata(header: Header, quantization: Quantization | None) -> dict[str, str]:
    return {
        KEY: VERSION,
        "davit_native_sha256": NO_DIGEST,
        "kind": header.kind,
        "config": json.dumps(to_json(header.config)),
        "preprocessing": json.dumps(to_json(header.preprocessing)),
        "classes": json.dumps(list(header.classes), ensure_ascii=False),
        "provenance": json.dumps(header.provenance, ensure_ascii=False, sort_keys=True),
        "quantization": json.dumps(to_json(quantization) if quantization else None),
    }


def _described(path: Path, metadata: Mapping[str, str]) -> tuple[Header, Quantization | None]:
    try:
        quantization = json.loads(metadata["quantization"])
        header = Header(
            kind=metadata["kind"],  # type: ignore[bad-argument-type]  # Header refuses other words
            config=from_json(CONFIGS[metadata["kind"]], json.loads(metadata["config"])),
            preprocessing=from_json(Preprocessing, json.loads(metadata["preprocessing"])),
            classes=tuple(json.loads(metadata["classes"])),
            provenance=json.loads(metadata["provenance"]),
        )
        return header, from_json(Quantization, quantization) if quantization else None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its header makes no sense: {error}") from error
