"""The engines that `inference.py` compares: each from a folder of files that hold the same weights."""

import ctypes
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import davit
from davit.inference.backends.native.artefact import read_native, write_native
from davit.inference.backends.native.quantize import quantize
from davit.inference.backends.onnx_export import export_onnx
from davit.inference.backends.openvino_ir import export_openvino, quantize_openvino
from davit.weights.export import export as rename
from davit.weights.save import header_of

FITTED = 64  # images that int8 is fitted to


@dataclass(frozen=True, kw_only=True)
class Case:
    """A batch of square images, and the threads that compute it."""

    batch: int
    side: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Contender:
    """An engine that is ready.

    Attributes:
        run: the logits of a batch.
        turn: computes `batches` batches, as fast as it can.
        batches: how many.
    """

    run: Callable[[Tensor], Tensor]
    turn: Callable[[Tensor], object]
    batches: int = 1


def simple(run: Callable[[Tensor], Tensor]) -> Contender:
    """One batch after the other."""
    return Contender(run=run, turn=run)


def eager(folder: Path, case: Case) -> Contender:
    """Our reference model."""
    return simple(davit.load(folder / "model.safetensors"))


def native(folder: Path, case: Case, name: str) -> Contender:
    """The native engine."""
    return simple(read_native(folder / name, threads=case.threads))


def timm_model(folder: Path) -> nn.Module:
    """The same weights in timm's model."""
    import timm

    facts = json.loads((folder / "facts.json").read_text())
    model = timm.create_model(facts["variant"], num_classes=facts["classes"])
    model.load_state_dict(torch.load(folder / "timm.pth", mmap=True))
    return model.eval()


def timm_eager(folder: Path, case: Case) -> Contender:
    """PyTorch, operation by operation."""
    return simple(timm_model(folder))


def timm_compiled(folder: Path, case: Case) -> Contender:
    """torch.compile for this very shape, weights frozen into the graph."""
    import torch._inductor.config as settings

    settings.freezing = True
    return simple(torch.compile(timm_model(folder), dynamic=False))


def onnxruntime_(folder: Path, case: Case, name: str) -> Contender:
    """ONNX Runtime with all optimisations, which are its default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    session = onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return simple(lambda images: torch.from_numpy(session.run(None, {entry.name: images.numpy()})[0]))


def openvino_(folder: Path, case: Case, name: str, hint: str) -> Contender:
    """OpenVINO for this very shape; with the throughput hint as many batches at once as it asks for."""
    import openvino

    core = openvino.Core()
    core.set_property({"CACHE_DIR": str(folder / "openvino_cache")})
    model = core.read_model(folder / name)
    model.reshape([case.batch, 3, case.side, case.side])
    settings = {
        "PERFORMANCE_HINT": hint,
        "INFERENCE_NUM_THREADS": case.threads,
        "INFERENCE_PRECISION_HINT": "f32",  # or it takes bfloat16 where the processor has it
    }
    compiled = core.compile_model(model, "CPU", settings)
    requests = [
        compiled.create_infer_request() for _ in range(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
    ]

    def run(images: Tensor) -> Tensor:
        requests[0].infer([images.numpy()], share_inputs=True)
        return torch.from_numpy(requests[0].output_tensors[0].data.copy())

    def turn(images: Tensor) -> None:
        pixels = images.numpy()
        for request in requests:
            request.start_async([pixels], share_inputs=True)
        for request in requests:
            request.wait()

    return Contender(run=run, turn=turn, batches=len(requests))


def contenders() -> dict[str, tuple[Callable[[Path, Case], Contender], tuple[str, ...]]]:
    """All of them by name, and the files that they need; those of int8 have it in their name."""
    timm_files = ("timm.pth",)
    made: dict[str, tuple[Callable[[Path, Case], Contender], tuple[str, ...]]] = {
        "native": (partial(native, name="model.davit"), ("model.davit",)),
        "native_int8": (partial(native, name="int8.davit"), ("int8.davit",)),
        "eager": (eager, ()),
        "timm": (timm_eager, timm_files),
        "timm_compiled": (timm_compiled, timm_files),
        "onnxruntime": (partial(onnxruntime_, name="model.onnx"), ("model.onnx",)),
        "onnxruntime_timm": (partial(onnxruntime_, name="timm.onnx"), (*timm_files, "timm.onnx")),
    }
    graphs = {
        "openvino": ("model.xml",),
        "openvino_timm": (*timm_files, "timm.xml"),
        "openvino_int8": ("model.xml", "int8.xml"),
        "openvino_timm_int8": (*timm_files, "timm.xml", "timm_int8.xml"),
    }
    for start, files in graphs.items():
        for hint in ("latency", "throughput"):
            made[f"{start}_{hint}"] = (partial(openvino_, name=files[-1], hint=hint.upper()), files)
    return made


def prepare(folder: Path, model: Any, variant: str, names: Sequence[str], pictures: Tensor) -> None:
    """Write the files that contenders open, those that are not there yet; tell which cannot be written.

    Args:
        folder: where to.
        model: a classifier.
        variant: its name in timm.
        names: of contenders.
        pictures: (B, C, H, W) to fit int8 to.
    """
    batches, side = list(pictures.split(1)), pictures.shape[2]
    write: dict[str, Callable[[Path], object]] = {
        "model.safetensors": partial(davit.save, model),
        "timm.pth": partial(_write_timm, model, variant),
        "model.davit": lambda path: write_native(path, model),
        "int8.davit": lambda path: write_native(path, model, quantize(model, batches)),
        "model.onnx": partial(export_onnx, model),
        "timm.onnx": partial(_write_timm_onnx, folder, side),
        "model.xml": partial(export_openvino, model),
        "timm.xml": partial(_write_timm_openvino, folder, side),
        "int8.xml": lambda path: quantize_openvino(folder / "model.xml", path, batches),
        "timm_int8.xml": partial(_write_timm_int8, folder, batches),
    }
    known = contenders()
    needed = {"model.safetensors", *(file for name in names for file in known[name][1])}
    for file, make in write.items():
        if file in needed and not (folder / file).exists():
            print(f"writing {file}", flush=True)
            try:
                make(folder / file)
            except Exception as error:  # of a peer's exporter; its contender will be left out
                print(f"{file} cannot be written: {str(error).strip().splitlines()[0]}", flush=True)


def _write_timm(model: Any, variant: str, path: Path) -> None:
    header = header_of(model, {})
    torch.save(rename(header, model.state_dict(), "timm"), path)
    facts = {"variant": variant, "classes": model.config.num_classes}
    path.with_name("facts.json").write_text(json.dumps(facts))


def _write_timm_onnx(folder: Path, side: int, path: Path) -> None:
    """As its users export it: of free batch, and one size."""
    images = torch.zeros(2, 3, side, side)
    settings: dict[str, Any] = {"dynamo": True, "dynamic_shapes": ({0: "batch"},), "verbose": False}
    with torch.no_grad():
        torch.onnx.export(timm_model(folder), (images,), path, external_data=False, **settings)


def _write_timm_openvino(folder: Path, side: int, path: Path) -> None:
    import openvino

    free = ({0: torch.export.Dim.AUTO},)
    with torch.no_grad():
        program = torch.export.export(timm_model(folder), (torch.zeros(2, 3, side, side),), dynamic_shapes=free)
    openvino.save_model(openvino.convert_model(program), path, compress_to_fp16=False)


def _write_timm_int8(folder: Path, batches: list[Tensor], path: Path) -> None:
    """NNCF as its users call it for transformers."""
    import nncf
    import openvino

    model = openvino.Core().read_model(folder / "timm.xml")
    data = nncf.Dataset([batch.numpy() for batch in batches])
    quantized = nncf.quantize(model, data, subset_size=len(batches), model_type=nncf.ModelType.TRANSFORMER)
    openvino.save_model(quantized, path, compress_to_fp16=False)


def keep_memory() -> None:
    """Let the C library keep what is freed, for all: mapping large buffers anew costs timm some hundredths."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for setting, value in ((-3, 1 << 30), (-1, 1 << 30)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            library.mallopt(setting, value)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Root mean square error over the standard deviation."""
    return float((found - wanted).square().mean().sqrt() / wanted.std())


def noise(shape: tuple[int, ...]) -> Tensor:
    """The same images for all."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
