"""Models to ONNX files of free batch and image size, by PyTorch's exporter.

Every file has the input `images` (batch, channels, height, width), normalised as its metadata say. Outputs:

- classifier: `logits` (batch, classes)
- segmenter: `logits` (batch, classes, ceil(height / 4), ceil(width / 4))
- detector: `boxes` (objects, 4) as left, top, right, bottom in pixels, `scores` (objects,), `indices` (objects,) of
  classes, `counts` (batch,), and with Mask R-CNN `masks` (objects, 28, 28), probabilities on a grid that spans the box.
  The objects of all images follow each other, best first in each; `counts` says how many are whose. Non-maximum
  suppression and RoIAlign are in the graph.
- backbone: `map4`, `map8`, `map16`, `map32`
"""

import hashlib
import json
import os
import secrets
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from davit.atomic import atomic_write, sync_folder
from davit.inference.backends.exported import to_metadata
from davit.inference.backends.onnx_header import NO_DIGEST, PRODUCER, sealed
from davit.inference.backends.tracing import plain_graph, traced_images
from davit.models.detector import Detector
from davit.weights.load import LoadedModel
from davit.weights.save import header_of

if TYPE_CHECKING:
    import onnx_ir

OPSET = 20  # the first with GELU
INLINE_LIMIT = 1_900_000_000  # bytes of weights; protobuf ends at 2 GiB


def export_onnx(
    model: LoadedModel,
    path: str | Path,
    *,
    provenance: Mapping[str, Any] | None = None,
    inline_limit: int = INLINE_LIMIT,
) -> None:
    """Write a model as one ONNX file that also holds its config, preprocessing and class names.

    The file appears whole or not at all. It is not compared with the model here: see `davit.inference.parity`.

    Args:
        model: in evaluation mode, on the CPU.
        path: a name that ends in `.onnx`.
        provenance: where the weights come from; any JSON values.
        inline_limit: where the weights have more bytes, they go into a second file, `path` with `.data` behind it.

    Raises:
        ValueError: another ending, or the packages of the extra `onnx` are missing.
        OSError: the disk is full or refuses.
    """
    target = Path(os.path.realpath(path))
    if target.suffix != ".onnx":
        raise ValueError(f"the name of an ONNX file ends in .onnx, got {path}")
    metadata = to_metadata(header_of(model, provenance or {}))
    if not target.parent.is_dir():  # before minutes of work
        raise OSError(f"could not save {path}: the folder {target.parent} does not exist")
    traced = _traced(model)
    traced.producer_name, traced.producer_version = PRODUCER, metadata["davit_version"]
    traced.doc_string = __doc__
    traced.metadata_props.clear()
    traced.metadata_props.update(metadata)
    size = sum(value.const_value.nbytes for value in traced.graph.initializers.values() if value.const_value)
    if size > inline_limit:
        traced.metadata_props["davit_data"] = json.dumps(_write_data(traced, target.with_name(f"{target.name}.data")))
    traced.metadata_props["davit_sha256"] = NO_DIGEST
    raw = sealed(_serialised(traced))
    with atomic_write(target) as file:
        file.write(raw)


def _traced(model: LoadedModel) -> "onnx_ir.Model":
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError("ONNX files need the packages of the extra onnx: pip install 'davit[onnx]'") from error
    graph, names = _graph(model)
    images = traced_images(model)
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about itself
        program = torch.onnx.export(
            graph.eval(),
            (images,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
            input_names=["images"],
            output_names=names,
            custom_translation_table=_translations(),
            verbose=False,
        )
    assert program is not None
    traced = program.model
    for node in traced.graph.all_nodes():  # where in our files each came from; longer than small models
        node.metadata_props.clear()
        node.doc_string = None
    if isinstance(model, Detector):
        _name_dimension(traced, str(traced.graph.outputs[0].shape[0]), "objects")  # type: ignore[unsupported-operation]
    return traced


def _graph(model: LoadedModel) -> tuple[nn.Module, list[str]]:
    """Return what is traced, and the names of its outputs."""
    if isinstance(model, Detector):
        from davit.inference.backends.onnx_detection import DetectionGraph

        masks = ["masks"] if model.config.head.kind == "mask_rcnn" else []
        return DetectionGraph(model), ["boxes", "scores", "indices", "counts", *masks]
    return plain_graph(model)


def _translations() -> dict[Any, Callable[..., Any]]:
    """Operators that the exporter cannot translate by itself."""
    from onnx import TensorProto
    from onnx.helper import make_tensor
    from onnxscript import opset20

    from davit.inference.backends.onnx_detection import NOTHING  # and so that torch knows keep_apart

    op: Any = opset20  # whose own annotations do not fit each other
    no, yes = (make_tensor("", TensorProto.BOOL, [1], [flag]) for flag in (False, True))

    def remainder(x: Any, divisor: Any) -> Any:  # the exporter's own takes no divisor that is computed
        return op.Mod(x, divisor)

    def keep_apart(boxes: Any, scores: Any, threshold: float) -> Any:
        all_of_them, worst = op.Constant(value_ints=[2**31 - 1]), op.Constant(value_floats=[NOTHING / 2])
        best = op.NonMaxSuppression(boxes, scores, all_of_them, op.Constant(value_floats=[threshold]), worst)
        kept = op.ConstantOfShape(op.Shape(scores), value=no)
        return op.ScatterND(kept, best, op.ConstantOfShape(op.Shape(best, start=0, end=1), value=yes))

    return {torch.ops.aten.remainder.Scalar: remainder, torch.ops.davit.keep_apart.default: keep_apart}


def _name_dimension(traced: "onnx_ir.Model", name: str, better: str) -> None:
    import onnx_ir

    values = [*traced.graph.outputs, *(value for node in traced.graph.all_nodes() for value in node.outputs)]
    for value in values:
        if value.shape is not None and any(str(side) == name for side in value.shape):
            value.shape = onnx_ir.Shape([better if str(side) == name else side for side in value.shape])


def _serialised(traced: "onnx_ir.Model") -> bytes:
    import onnx_ir

    return onnx_ir.to_proto(traced).SerializeToString(deterministic=True)


def _write_data(traced: "onnx_ir.Model", target: Path) -> dict[str, str]:
    """Move the weights into a file beside the model; return its name and SHA-256.

    A crash before the model's own file is renamed leaves an older model beside newer weights; its digest tells.
    """
    import onnx_ir

    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        onnx_ir.external_data.unload_from_model(traced, target.parent, temporary.name, size_threshold_bytes=1024)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        temporary.replace(target)
        sync_folder(target.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    for value in traced.graph.initializers.values():
        old = value.const_value
        if isinstance(old, onnx_ir.ExternalTensor):
            value.const_value = onnx_ir.ExternalTensor(
                target.name, old.offset, old.length, old.dtype, shape=old.shape, name=old.name or "", base_dir=""
            )
    return {"file": target.name, "sha256": digest}
