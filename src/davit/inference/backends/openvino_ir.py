"""OpenVINO files: written from a model, in float32 or int8, and run.

A file of OpenVINO is a pair: the graph, OUT.xml, and the weights, OUT.bin beside it. It takes `images` (B, C, H, W) of
any batch and size, normalised as its metadata say, and gives the outputs that `onnx_export` tells of. `rt_info` in the
graph holds under `davit` what the header of a checkpoint holds, the SHA-256 of the weights, and one over the graph
itself, with zeros in its own place.
"""

import hashlib
import logging
import re
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from davit.atomic import atomic_write
from davit.inference.backends.exported import ExportedBackend, as_array, from_metadata, to_metadata
from davit.inference.backends.onnx_export import export_onnx
from davit.inference.backends.signal_stack import kept_signal_stack
from davit.inference.backends.tracing import plain_graph, trace
from davit.models.detector import Detector
from davit.weights.checkpoint import CheckpointError
from davit.weights.load import LoadedModel
from davit.weights.save import header_of

if TYPE_CHECKING:
    import openvino

Hint = Literal["latency", "throughput"]

SUFFIX = ".xml"
_EXTRA = "the packages of the extra openvino: pip install 'davit[openvino]'"
_SECTION = "davit"
_NO_DIGEST, _NO_DATA = "0" * 64, "1" * 64
_DIGEST = re.compile(rb'<davit_sha256 value="([0-9a-f]{64})"')


def is_openvino(path: str | Path) -> bool:
    """Whether a file is meant to be the graph of an OpenVINO pair: by its name, or by how it begins."""
    if Path(path).suffix.lower() == SUFFIX:
        return True
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return b"<net " in file.read(64)


def export_openvino(model: LoadedModel, path: str | Path, *, provenance: Mapping[str, Any] | None = None) -> None:
    """Write a model as a pair of files that also hold its config, preprocessing and class names.

    Each file appears whole or not at all, the graph last. They are not compared with the model here: see
    `davit.inference.parity`.

    Args:
        model: in evaluation mode, on the CPU.
        path: a name that ends in `.xml`; the weights go beside it, in `.bin`.
        provenance: where the weights come from; any JSON values.

    Raises:
        ValueError: another ending, or the packages of the extra `openvino` (for detectors `onnx`, too) are missing.
        OSError: the disk is full or refuses.
    """
    target = _target(path)
    _write(_converted(model, target.parent), target, to_metadata(header_of(model, provenance or {})))


def quantize_openvino(source: str | Path, path: str | Path, images: Sequence[Tensor]) -> None:
    """Write the int8 form of a pair of files.

    NNCF finds the ranges of activations on the images, and corrects biases. Linear layers and convolutions become int8.
    Products of two activations, those of the attentions, stay float32, for channel attention adds over all positions
    and int8 loses what tells its channels apart; so do the depth-wise convolutions and the first one, which are few
    multiply-adds.

    Args:
        source: written by `export_openvino`.
        path: as there.
        images: batches as the model takes them, (B, C, H, W) each; some hundred images of the data it is meant for.

    Raises:
        ValueError: no images, or the packages of the extra `openvino` are missing.
        OSError: the disk is full or refuses.
    """
    if not images:
        raise ValueError("int8 takes images of the data that the model is meant for, to find its ranges; got none")
    target = _target(path)
    model = _openvino().Core().read_model(source)
    quantized = _quantized(model, images)
    _write(quantized, target, {key: value for key, value in _metadata(Path(source)).items() if "sha256" not in key})


class OpenVinoModel:
    """A pair of OpenVINO files of any kind of model, compiled for this processor; calls take turns.

    Attributes:
        path: the graph.
        header: what the file says about itself.
        device: the CPU.
    """

    def __init__(self, path: str | Path, threads: int | None = None, hint: Hint = "latency") -> None:
        """Verify and load a pair; see `OpenVinoBackend`."""
        self.path = Path(path)
        self.header = from_metadata(self.path, _checked_metadata(self.path))
        self.device = torch.device("cpu")
        self._lock = threading.Lock()
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        settings = {
            "PERFORMANCE_HINT": hint.upper(),
            "INFERENCE_NUM_THREADS": torch.get_num_threads() if threads is None else threads,
            "INFERENCE_PRECISION_HINT": "f32",  # or OpenVINO takes bfloat16 where the processor has it
        }
        library = _openvino()
        try:
            core = library.Core()
            with kept_signal_stack():
                compiled = core.compile_model(core.read_model(self.path), "CPU", settings)
        except Exception as error:  # it has a class for each kind of failure
            raise CheckpointError(f"{path}: OpenVINO cannot load it ({_first_line(error)})") from error
        parallel = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") if hint == "throughput" else 1
        self._requests = [compiled.create_infer_request() for _ in range(parallel)]

    def __call__(self, images: Tensor) -> list[Tensor]:  # (B, C, H, W)
        """Return the outputs of the graph in order: logits, or what makes up detections, or maps.

        Raises:
            ValueError: images of another number of channels or dimensions, or that OpenVINO cannot compute.
        """
        pixels = as_array(images, self)
        parts = np.array_split(pixels, max(1, min(len(self._requests), len(pixels))))
        with self._lock:
            busy = list(zip(self._requests, parts, strict=False))
            try:
                for request, part in busy:
                    request.start_async([part], share_inputs=True)
                for request, _ in busy:
                    request.wait()
            except RuntimeError as error:
                raise ValueError(
                    f"{self.path}: OpenVINO cannot compute {tuple(images.shape)}: {_first_line(error)}"
                ) from error
            answers = [[output.data for output in request.output_tensors] for request, _ in busy]
            return [torch.from_numpy(np.concatenate(of_parts)) for of_parts in zip(*answers, strict=True)]


class OpenVinoBackend(ExportedBackend):
    """A pair of OpenVINO files in the place of a model."""

    def __init__(self, path: str | Path, threads: int | None = None, hint: Hint = "latency") -> None:
        """Verify and load a pair.

        Args:
            path: the graph, written by `davit export`.
            threads: of each call; None takes as many as PyTorch uses.
            hint: "latency" gives each call all threads at once; "throughput" deals a batch out to several streams.

        Raises:
            CheckpointError: a file is damaged, changed, or not from `davit export`.
            ValueError: a backbone without a head or a model without preprocessing; the packages of the extra `openvino`
                are missing.
            OSError: a file cannot be read.
        """
        super().__init__(OpenVinoModel(path, threads, hint))


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ValueError(f"OpenVINO files need {_EXTRA}") from error
    return openvino


def _converted(model: LoadedModel, folder: Path) -> "openvino.Model":
    library = _openvino()
    if isinstance(model, Detector):  # whose graph has operators that only the translation to ONNX knows
        with tempfile.TemporaryDirectory(prefix=".davit.", suffix=".tmp", dir=folder) as temporary:
            export_onnx(model, Path(temporary, "model.onnx"))
            return library.Core().read_model(Path(temporary, "model.onnx")).clone()
    converted = library.convert_model(trace(model))
    for output, name in zip(converted.outputs, plain_graph(model)[1], strict=True):
        output.get_tensor().set_names({name})
    return converted


def _quantized(model: "openvino.Model", images: Sequence[Tensor]) -> "openvino.Model":
    arrays = [batch.detach().float().cpu().contiguous().numpy() for batch in images]
    with redirect_stdout(StringIO()):  # bars and notes, which would be in the middle of what we print
        try:
            import nncf
        except ImportError as error:
            raise ValueError(f"int8 files of OpenVINO need {_EXTRA}") from error
        log = logging.getLogger("nncf")  # it tells of every operation
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            with kept_signal_stack():
                return nncf.quantize(
                    model,
                    nncf.Dataset(arrays),
                    subset_size=len(arrays),
                    model_type=nncf.ModelType.TRANSFORMER,
                    ignored_scope=nncf.IgnoredScope(names=_kept(model)),
                )
        finally:
            log.setLevel(level)


def _kept(model: "openvino.Model") -> list[str]:
    """Names of the operations that stay float32."""
    nodes = model.get_ordered_ops()
    products = [node for node in nodes if node.get_type_name() == "MatMul"]
    kept = [node for node in products if not any(_constant(value) for value in node.input_values())]
    kept += [node for node in nodes if node.get_type_name() in ("ScaledDotProductAttention", "GroupConvolution")]
    kept += [node for node in nodes if node.get_type_name() == "Convolution"][:1]
    return [node.get_friendly_name() for node in kept]


def _constant(value: Any) -> bool:
    node = value.get_node()
    while node.get_type_name() in ("Convert", "Transpose", "Reshape") and node.get_input_size():
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant"


def _target(path: str | Path) -> Path:
    target = Path(path).resolve()
    if target.suffix != SUFFIX:
        raise ValueError(f"the name of an OpenVINO file ends in {SUFFIX}, got {path}")
    if not target.parent.is_dir():  # before minutes of work
        raise OSError(f"could not save {path}: the folder {target.parent} does not exist")
    return target


def _write(model: "openvino.Model", target: Path, metadata: Mapping[str, str]) -> None:
    for key, value in {**metadata, "davit_sha256": _NO_DIGEST, "davit_data_sha256": _NO_DATA}.items():
        model.set_rt_info(value, [_SECTION, key])
    with tempfile.TemporaryDirectory(prefix=".davit.", suffix=".tmp", dir=target.parent) as folder:
        graph = Path(folder, "model.xml")
        try:
            _openvino().save_model(model, graph, compress_to_fp16=False)
        except RuntimeError as error:
            raise OSError(f"could not save {target}: {_first_line(error)}") from error
        raw, weights = graph.read_bytes(), graph.with_suffix(".bin").read_bytes()
    for place, content in ((_NO_DATA, weights), (_NO_DIGEST, None)):
        assert raw.count(place.encode()) == 1
        raw = raw.replace(place.encode(), hashlib.sha256(raw if content is None else content).hexdigest().encode())
    with atomic_write(target.with_suffix(".bin")) as file:
        file.write(weights)
    with atomic_write(target) as file:
        file.write(raw)


def _checked_metadata(path: Path) -> dict[str, str]:
    """What a pair says about itself, both files verified to the bit."""
    raw = path.read_bytes()
    found = _DIGEST.search(raw)
    if found is None:
        raise CheckpointError(
            f"{path}: damaged, or not written by `davit export`: it does not say how images are prepared for it and "
            "what its outputs mean"
        )
    blank = raw[: found.start(1)] + _NO_DIGEST.encode() + raw[found.end(1) :]
    if hashlib.sha256(blank).hexdigest().encode() != found[1]:
        raise CheckpointError(f"{path}: damaged, or changed since `davit export` wrote it; export it anew")
    metadata = _metadata(path)
    weights = path.with_suffix(".bin")
    with weights.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != metadata.get("davit_data_sha256"):
            raise CheckpointError(f"{weights}: damaged, or not the weights of {path}; export both anew")
    return metadata


def _metadata(path: Path) -> dict[str, str]:
    section = ElementTree.parse(path).getroot().find(f"rt_info/{_SECTION}")
    return {} if section is None else {entry.tag: entry.get("value", "") for entry in section}


def _first_line(error: Exception) -> str:
    """The reason in an error of OpenVINO, which begins with places in its source."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith(("Exception from", "Check '"))]
    return (lines or str(error).splitlines() or [type(error).__name__])[0]
