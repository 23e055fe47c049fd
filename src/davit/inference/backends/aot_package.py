"""AOTInductor packages: a model compiled to machine code by PyTorch, for processors like the one that did it.

A package, OUT.pt2, is a zip archive with a shared library and what the header of a checkpoint holds. It takes `images`
(B, C, H, W) of any batch and size, normalised as its metadata say. It runs with the version of PyTorch that wrote it.

Opening a package runs the code in it: whoever wrote it can do with your computer what you can. So a package is opened
only where the caller says that it is trusted. All other formats are data.
"""

import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from davit.inference.backends.exported import ExportedBackend, check_images, from_metadata, to_metadata
from davit.inference.backends.tracing import trace
from davit.models.detector import Detector
from davit.weights.checkpoint import CheckpointError
from davit.weights.load import LoadedModel
from davit.weights.save import header_of

SUFFIX = ".pt2"
_CODE = "/data/aotinductor/"
_ISA, _MACHINE = "AOTI_CPU_ISA", "AOTI_MACHINE"  # PyTorch's own entries


def is_torch_package(path: str | Path) -> bool:
    """Whether a file is meant to be an AOTInductor package: by its name, or by what it holds."""
    if Path(path).suffix.lower() == SUFFIX:
        return True
    if not Path(path).is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(_CODE in name for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def export_torch(model: LoadedModel, path: str | Path, *, provenance: Mapping[str, Any] | None = None) -> None:
    """Compile a model into a package that also holds its config, preprocessing and class names.

    That takes minutes, and a C++ compiler. The file is not compared with the model here: see `davit.inference.parity`.

    Args:
        model: a classifier, backbone or segmenter, in evaluation mode, on the CPU.
        path: a name that ends in `.pt2`.
        provenance: where the weights come from; any JSON values.

    Raises:
        ValueError: another ending, a detector, or no C++ compiler.
        OSError: the disk is full or refuses.
    """
    from torch._inductor import aoti_compile_and_package

    if Path(path).suffix != SUFFIX:
        raise ValueError(f"the name of an AOTInductor package ends in {SUFFIX}, got {path}")
    if isinstance(model, Detector):
        raise ValueError("detectors cannot be compiled by AOTInductor; take --format onnx, openvino or native")
    if not Path(path).parent.is_dir():  # before minutes of work
        raise OSError(f"could not save {path}: the folder {Path(path).parent} does not exist")
    metadata = {**to_metadata(header_of(model, provenance or {})), "torch": _minor(torch.__version__)}
    settings = {"freezing": True, "aot_inductor.metadata": metadata}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            aoti_compile_and_package(trace(model), package_path=str(path), inductor_configs=settings)
        except Exception as error:
            if not Path(path).parent.is_dir() or isinstance(error, OSError):
                raise
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"AOTInductor cannot compile this model here: {reason}. It takes a C++ compiler"
            ) from error


class TorchPackage:
    """A package of any kind of model, loaded.

    Attributes:
        path: the file.
        header: what it says about itself.
        device: the CPU.
    """

    def __init__(self, path: str | Path, *, trust: bool) -> None:
        """Verify and load a package, which runs the code in it; see `TorchBackend`."""
        self.path = Path(path)
        metadata = read_metadata(self.path)
        self.header = from_metadata(self.path, metadata)
        self.device = torch.device("cpu")
        if not trust:
            raise ValueError(
                f"{path} is machine code, and opening it runs that code: allow it by --trust or trust=True if you know "
                "who wrote it, or use an ONNX, OpenVINO or native file, which are data"
            )
        _check_machine(self.path, metadata)
        from torch._inductor import aoti_load_package

        try:
            self._run = aoti_load_package(str(self.path))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path}: PyTorch cannot load it ({reason}); export it anew") from error

    def __call__(self, images: Tensor) -> list[Tensor]:  # (B, C, H, W)
        """Return the outputs in order: logits, or maps.

        Raises:
            ValueError: images of another number of channels or dimensions.
        """
        pixels = check_images(images, self).detach().float().cpu().contiguous()
        with torch.no_grad():
            outputs = self._run(pixels)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)


class TorchBackend(ExportedBackend):
    """An AOTInductor package in the place of a model."""

    def __init__(self, path: str | Path, *, trust: bool) -> None:
        """Verify and load a package.

        Args:
            path: written by `davit export`.
            trust: opening a package runs the code in it; without this it is refused.

        Raises:
            CheckpointError: the file is damaged, not from `davit export`, or made for another processor or PyTorch.
            ValueError: not trusted, a backbone without a head, or a model without preprocessing.
            OSError: the file cannot be read.
        """
        super().__init__(TorchPackage(path, trust=trust))


def read_metadata(path: Path) -> dict[str, str]:
    """What a package says about itself, its records verified, without running anything.

    Raises:
        CheckpointError: damaged, or no package.
        OSError: it cannot be read.
    """
    with path.open("rb"):  # a missing file gets its own error
        pass
    found: dict[str, str] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
            for name in archive.namelist():
                if _CODE in name and name.endswith("_metadata.json"):
                    found |= json.loads(archive.read(name))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise CheckpointError(f"{path}: damaged, or no package of `davit export`; export it anew") from error
    if bad is not None:
        raise CheckpointError(f"{path}: damaged in {bad.rpartition('/')[2]}; export it anew")
    return found


def _check_machine(path: Path, metadata: Mapping[str, str]) -> None:
    """Refuse code for another processor or PyTorch, which might crash."""
    from torch._inductor.codecache import get_device_information

    here = {**get_device_information("cpu"), "torch": _minor(torch.__version__)}
    for key, what in ((_MACHINE, "machines"), (_ISA, "processors with"), ("torch", "PyTorch")):
        if metadata.get(key) != here.get(key):
            raise CheckpointError(
                f"{path}: compiled for {what} {metadata.get(key)}, here is {here.get(key)}; export it here"
            )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
