"""Models to files that other engines run; no file appears that was not compared with its model."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from davit.atomic import atomic_write, sync_folder
from davit.inference.parity import Parity, compare
from davit.records import to_json

if TYPE_CHECKING:
    from torch import Tensor

    from davit.weights.load import LoadedModel

Format = Literal["onnx"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx"}


class ParityError(ValueError):
    """An exported file that computes something else than its model; it was deleted.

    Attributes:
        parity: what was compared.
    """

    def __init__(self, parity: Parity) -> None:
        """Tell what differs."""
        self.parity = parity
        failures = parity.failures
        told = [*failures[:3], *(["and so on"] if len(failures) > 3 else [])]
        super().__init__(f"{parity.file} computed something else than the model and was deleted: {'; '.join(told)}")


def export(
    model: "LoadedModel",
    path: str | Path,
    format: Format = "onnx",
    *,
    pictures: "Iterable[tuple[str, Tensor]]" = (),
    provenance: Mapping[str, Any] | None = None,
) -> Parity:
    """Write a model in another format, compare the file with the model, and write the comparison beside it.

    Whatever was at `path` is replaced only by a file that passes. The comparison goes to `path`.parity.json.

    Args:
        model: in evaluation mode, on the CPU.
        path: where to; its ending is that of the format.
        format: what to write.
        pictures: names, and images (C, H, W) as preprocessing makes them, to compare on beside made-up ones.
        provenance: where the weights come from; any JSON values.

    Raises:
        ParityError: the file computes something else.
        ValueError: an unknown ending, or missing packages.
        OSError: the disk is full or refuses.
    """
    target = Path(os.path.realpath(path))
    if target.suffix != SUFFIXES[format]:
        raise ValueError(f"the name of an {format.upper()} file ends in {SUFFIXES[format]}, got {path}")
    if not target.parent.is_dir():  # before minutes of work
        raise OSError(f"could not save {path}: the folder {target.parent} does not exist")
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        parity = _write(model, folder / target.name, str(path), pictures, provenance)
        if parity.failures:
            raise ParityError(parity)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == target.name):  # the file itself last
            file.replace(target.with_name(file.name))
        sync_folder(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    with atomic_write(target.with_name(f"{target.name}.parity.json")) as file:
        file.write(json.dumps(report(parity), indent=2).encode())
    return parity


def report(parity: Parity) -> dict[str, Any]:
    """A comparison as JSON values."""
    found = {
        "largest": parity.largest,
        "objects": parity.objects,
        "unmatched": parity.unmatched,
        "failures": parity.failures,
    }
    return {**found, **to_json(parity)}


def _write(
    model: "LoadedModel",
    path: Path,
    name: str,
    pictures: "Iterable[tuple[str, Tensor]]",
    provenance: Mapping[str, Any] | None,
) -> Parity:
    from davit.inference.backends.onnx_export import export_onnx
    from davit.inference.backends.onnx_runtime import OnnxModel, read_outputs

    export_onnx(model, path, provenance=provenance)
    exported = OnnxModel(path, device="cpu")
    return compare(model, lambda images: read_outputs(exported.header.kind, exported(images)), name, pictures)
