"""Models to files that other engines run; no file appears that was not compared with its model."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from davit.atomic import atomic_write, sync_folder
from davit.inference.backends.exported import ExportedModel, read_outputs
from davit.inference.backends.opening import Format, open_exported
from davit.inference.judging import Answers, Judgement, Scores, agreement, race, same_size
from davit.inference.parity import Parity, compare
from davit.naming import unknown_name
from davit.records import to_json
from davit.weights.save import header_of

if TYPE_CHECKING:
    from torch import Tensor

    from davit.inference.backends.protocol import Backend
    from davit.weights.load import LoadedModel

FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2", "native": ".davit"}
_TITLES: dict[Format, str] = {
    "onnx": "an ONNX file",
    "openvino": "an OpenVINO file",
    "torch": "an AOTInductor package",
    "native": "a file for the native engine",
}
TIMED_BATCH = 8  # images of a call that int8 must be faster at


@dataclass(frozen=True, kw_only=True)
class Int8:
    """How a model becomes int8, and what may be lost.

    Attributes:
        images: (C, H, W) as preprocessing makes them, to fit int8 to; some hundred of the data the model is meant for.
        pictures: others, to compare answers and speed on.
        score: name of a score, number of images, and the score in 0 to 1 of a backend; None without labels.
        max_drop: points of a hundred that the score may lose.
    """

    images: "Sequence[Tensor]"
    pictures: "Sequence[Tensor]"
    score: "Callable[[Backend], tuple[str, int, float]] | None" = None
    max_drop: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what decides nothing."""
        if not self.images or not self.pictures:
            raise ValueError("int8 takes images to fit to, and pictures to judge by; got none")
        if not self.max_drop >= 0:
            raise ValueError(f"max_drop must be at least 0, got {self.max_drop}")


class ParityError(ValueError):
    """An exported file that computes something else than its model, or is no better in int8; it was deleted.

    Attributes:
        parity: what was compared.
    """

    def __init__(self, parity: Parity) -> None:
        """Tell what differs."""
        self.parity = parity
        failures = parity.failures
        told = [*failures[:3], *(["and so on"] if len(failures) > 3 else [])]
        differs = parity.judgement is None or parity.judgement.failures != failures
        wrong = "computed something else than the model" if differs else "is not good enough"
        super().__init__(f"{parity.file} {wrong} and was deleted: {'; '.join(told)}")


def export(
    model: "LoadedModel",
    path: str | Path,
    format: Format = "onnx",
    *,
    pictures: "Iterable[tuple[str, Tensor]]" = (),
    provenance: Mapping[str, Any] | None = None,
    int8: Int8 | None = None,
) -> Parity:
    """Write a model in another format, compare the file with the model, and write the comparison beside it.

    Whatever was at `path` is replaced only by a file that passes. The comparison goes to `path`.parity.json.

    Args:
        model: in evaluation mode, on the CPU.
        path: where to; its ending is that of the format.
        format: what to write.
        pictures: names, and images (C, H, W) as preprocessing makes them, to compare on beside made-up ones.
        provenance: where the weights come from; any JSON values.
        int8: makes the file int8. A float32 one is written first and compared, and the int8 file is judged beside it.

    Raises:
        ParityError: the file computes something else, or is slower or less right in int8 than allowed.
        ValueError: an unknown ending, a format without int8, or missing packages.
        OSError: the disk is full or refuses.
    """
    if format not in SUFFIXES:
        raise unknown_name("format", format, FORMATS)
    if int8 and format not in ("openvino", "native"):
        raise ValueError(f"int8 files are for openvino and native, got {format}")
    target = Path(os.path.realpath(path))
    if target.suffix != SUFFIXES[format]:
        raise ValueError(f"the name of {_TITLES[format]} ends in {SUFFIXES[format]}, got {path}")
    if not target.parent.is_dir():  # before minutes of work
        raise OSError(f"could not save {path}: the folder {target.parent} does not exist")
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        parity = _write(model, folder / target.name, format, str(path), pictures, provenance)
        if int8 and not parity.failures:
            parity = _write_int8(model, folder, target.name, format, parity, int8, provenance)
        if parity.failures:
            raise ParityError(parity)
        files = [file for file in folder.iterdir() if file.is_file()]
        for file in sorted(files, key=lambda file: file.name == target.name):  # the file itself last
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
    scores = parity.judgement.scores if parity.judgement else None
    return {**found, **({"drop": scores.drop} if scores else {}), **to_json(parity)}


def _write(
    model: "LoadedModel",
    path: Path,
    format: Format,
    name: str,
    pictures: "Iterable[tuple[str, Tensor]]",
    provenance: Mapping[str, Any] | None,
) -> Parity:
    """Write a float32 file and compare it."""
    match format:
        case "onnx":
            from davit.inference.backends.onnx_export import export_onnx

            export_onnx(model, path, provenance=provenance)
        case "openvino":
            from davit.inference.backends.openvino_ir import export_openvino

            export_openvino(model, path, provenance=provenance)
        case "torch":
            from davit.inference.backends.aot_package import export_torch

            export_torch(model, path, provenance=provenance)
        case "native":
            from davit.inference.backends.native.artefact import write_native

            write_native(path, model, provenance=provenance)
    return compare(model, _answers(path, format), name, pictures)


def _write_int8(
    model: "LoadedModel",
    folder: Path,
    file: str,
    format: Format,
    float32: Parity,
    int8: Int8,
    provenance: Mapping[str, Any] | None,
) -> Parity:
    """Put an int8 file into the place of the float32 one, and judge it."""
    plain = folder / "float32"
    plain.mkdir()
    for written in [written for written in folder.iterdir() if written.is_file()]:
        written.rename(plain / written.name)
    batches = _batches(int8.images)
    if format == "openvino":
        from davit.inference.backends.openvino_ir import quantize_openvino

        quantize_openvino(plain / file, folder / file, batches)
    else:
        from davit.inference.backends.native.artefact import write_native
        from davit.inference.backends.native.quantize import quantize

        write_native(folder / file, model, quantize(model, batches), provenance=provenance)
    parity = compare(model, _answers(folder / file, format), float32.file, precision="int8")
    if parity.failures:
        return parity
    return replace(parity, judgement=_judge(header_of(model, {}).kind, plain / file, folder / file, format, int8))


def _judge(kind: str, plain: Path, coded: Path, format: Format, int8: Int8) -> Judgement:
    first, second = _answers(plain, format), _answers(coded, format)
    batch = same_size(int8.pictures, TIMED_BATCH)
    milliseconds, speedup = race(first, second, batch)
    scores = None
    if int8.score:
        metric, images, before = int8.score(open_exported(plain, format))
        scores = Scores(metric=metric, images=images, float32=before, int8=int8.score(open_exported(coded, format))[2])
    return Judgement(
        calibrated=len(int8.images),
        images=len(int8.pictures),
        agreement=agreement(kind, first, second, int8.pictures),
        batch=len(batch),
        milliseconds=milliseconds,
        speedup=speedup,
        scores=scores,
        max_drop=int8.max_drop,
    )


def _batches(images: "Sequence[Tensor]") -> "list[Tensor]":
    """Neighbours of one size together."""
    import torch

    groups: list[list[Tensor]] = []
    for pixels in images:
        if not groups or len(groups[-1]) == TIMED_BATCH or groups[-1][0].shape != pixels.shape:
            groups.append([])
        groups[-1].append(pixels)
    return [torch.stack(group) for group in groups]


def _answers(path: Path, format: Format) -> Answers:
    """What a file of ours computes, of a backbone too."""
    if format == "native":
        from davit.inference.backends.native.artefact import read_native

        return read_native(path)
    model = _open_model(path, format)
    return lambda images: read_outputs(model.header.kind, model(images))


def _open_model(path: Path, format: Format) -> ExportedModel:
    if format == "onnx":
        from davit.inference.backends.onnx_runtime import OnnxModel

        return OnnxModel(path, device="cpu")
    if format == "openvino":
        from davit.inference.backends.openvino_ir import OpenVinoModel

        return OpenVinoModel(path)
    from davit.inference.backends.aot_package import TorchPackage

    return TorchPackage(path, trust=True)  # it was made a moment ago
