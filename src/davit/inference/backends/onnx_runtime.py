"""ONNX files of `davit export`, run by ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from davit.inference.backends.exported import ExportedBackend, as_array, from_metadata
from davit.inference.backends.onnx_header import check_data, check_file
from davit.weights.checkpoint import CheckpointError, Header

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class OnnxModel:
    """An ONNX file of any kind, ready to run.

    Attributes:
        header: what the file says about itself.
        device: where it computes.
    """

    def __init__(self, path: str | Path, threads: int | None = None, device: str | torch.device | None = None) -> None:
        """Verify and load a file; see `OnnxBackend`."""
        self.path = Path(path)
        check_file(self.path)
        self._session = _session(self.path, threads, device)
        on_card = self._session.get_providers()[0] != "CPUExecutionProvider"
        self.device = torch.device(device or "cuda") if on_card else torch.device("cpu")
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.header: Header = from_metadata(self.path, metadata)
        check_data(self.path, metadata)

    def __call__(self, images: Tensor) -> list[Tensor]:  # (B, C, H, W)
        """Return the outputs of the graph in order, on the CPU: logits, or what makes up detections, or maps.

        Raises:
            ValueError: images of another number of channels or dimensions.
        """
        pixels = as_array(images, self)
        return [torch.from_numpy(output) for output in self._session.run(None, {"images": pixels})]


class OnnxBackend(ExportedBackend):
    """An ONNX file in the place of a model."""

    def __init__(self, path: str | Path, threads: int | None = None, device: str | torch.device | None = None) -> None:
        """Verify and load a file.

        Args:
            path: written by `davit export`.
            threads: of each run; None takes as many as PyTorch uses.
            device: None takes the graphics card if ONNX Runtime can use one, else the CPU.

        Raises:
            CheckpointError: the file is damaged, changed, or not from `davit export`.
            ValueError: a backbone without a head or a model without preprocessing; an unusable device; the packages of
                the extra `onnx` are missing.
            OSError: the file cannot be read.
        """
        super().__init__(OnnxModel(path, threads, device))


def _session(path: Path, threads: int | None, device: str | torch.device | None) -> "InferenceSession":
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"{path} needs the packages of the extra onnx: pip install 'davit[onnx]'") from error
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.log_severity_level = 3  # errors; they are raised as well
    providers = _providers(onnxruntime.get_available_providers(), device)
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # it has a class for each kind of failure
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: ONNX Runtime cannot load it ({reason}); is its .data file missing?") from error


def _providers(available: Sequence[str], device: str | torch.device | None) -> list[Any]:
    card = "CUDAExecutionProvider"
    kind, _, index = str(device if device is not None else "cuda" if card in available else "cpu").partition(":")
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    if kind != "cuda" or card not in available:
        raise ValueError(
            f"device {str(device)!r} cannot be used: ONNX Runtime has {', '.join(available)} here "
            "(cards need the package onnxruntime-gpu). Try 'cpu'"
        )
    # Without this, cards round factors of products to ten bits.
    return [(card, {"device_id": index or "0", "use_tf32": "0"}), "CPUExecutionProvider"]
