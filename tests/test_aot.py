"""AOTInductor packages: opened only where trusted, for this processor and PyTorch, and equal to the model."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

import davit
from davit.cli import main
from davit.inference.backends.aot_package import TorchBackend, TorchPackage, is_torch_package, read_metadata
from davit.inference.backends.exported import to_metadata
from davit.inference.backends.opening import exported_format, open_backend
from davit.inference.export import export
from davit.inference.predictor import Predictor
from davit.weights.checkpoint import CheckpointError
from davit.weights.save import header_of
from odd_pictures import encode
from spoken_models import detector
from test_onnx import CLASSES, classifier


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Threads wait for each other on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, its package and the comparison."""
    folder = tmp_path_factory.mktemp("torch")
    davit.save(classifier(), folder / "model.safetensors")
    assert main(["export", str(folder / "model.safetensors"), str(folder / "model.pt2")]) == 0
    return folder


@pytest.mark.slow
def test_a_package_is_the_model(exported: Path) -> None:
    backend, model = TorchBackend(exported / "model.pt2", trust=True), classifier()
    for shape in [(1, 97, 130), (5, 64, 64), (7, 33, 45), (1, 5, 300), (1, 1, 1)]:
        images = torch.randn(shape[0], *shape[1:], 3).permute(0, 3, 1, 2)
        with torch.inference_mode():
            torch.testing.assert_close(backend(images), model(images), atol=1e-5, rtol=1e-5)
    assert (backend.config, backend.preprocessing, backend.classes) == (model.config, model.preprocessing, CLASSES)
    with pytest.raises(ValueError, match=r"takes images \(B, 3, H, W\)"):
        backend(torch.zeros(1, 1, 40, 40))
    report = json.loads((exported / "model.pt2.parity.json").read_text())
    assert report["failures"] == []
    header = TorchPackage(exported / "model.pt2", trust=True).header
    assert header.provenance["checkpoint"] == str(exported / "model.safetensors")


@pytest.mark.slow
def test_predictions_are_the_models_where_the_file_is_trusted(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    (tmp_path / "a.png").write_bytes(encode(Image.linear_gradient("L").convert("RGB"), "PNG"))
    ours = Predictor.load(exported / "model.safetensors", device="cpu")(tmp_path / "a.png")[0]
    theirs = Predictor(open_backend(exported / "model.pt2", trust=True))(tmp_path / "a.png")[0]
    assert ours.labels == theirs.labels
    assert theirs.scores == pytest.approx(ours.scores, abs=1e-5)
    words = ["predict", str(tmp_path / "a.png"), "--model", str(exported / "model.pt2")]
    assert main(words) == 2
    assert "opening it runs that code" in capsys.readouterr().err
    assert main([*words, "--trust"]) == 0


@pytest.mark.slow
def test_a_damaged_package_is_named(exported: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(exported / "model.pt2", tmp_path / "model.pt2"))
    with zipfile.ZipFile(path) as archive:
        library = next(one for one in archive.infolist() if one.filename.endswith(".so"))
    raw = bytearray(path.read_bytes())
    raw[library.header_offset + 4096] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"model\.pt2: damaged in .*\.so"):
        TorchBackend(path, trust=True)
    path.write_bytes(raw[:2000])
    with pytest.raises(CheckpointError, match=r"model\.pt2: damaged, or no package"):
        TorchBackend(path, trust=True)


def package(path: Path, **changed: str) -> Path:
    """What a package says, without code."""
    metadata = {**to_metadata(header_of(classifier(), {})), **changed}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data/aotinductor/model/x.wrapper.so", b"no code")
        archive.writestr("model/data/aotinductor/model/x.wrapper_metadata.json", json.dumps(metadata))
    return path


def test_code_is_not_run_unless_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor

    def run(*_: object) -> None:
        raise AssertionError("it was opened")

    monkeypatch.setattr(torch._inductor, "aoti_load_package", run)
    path = package(tmp_path / "model.pt2")
    with pytest.raises(ValueError, match=r"model\.pt2 is machine code, and opening it runs that code"):
        open_backend(path)
    assert read_metadata(path)["kind"] == "classifier"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"AOTI_CPU_ISA": "AVX1024"}, "compiled for .*AVX1024"),
        ({"AOTI_MACHINE": "abacus"}, "compiled for machines abacus"),
        ({"torch": "1.0"}, "compiled for PyTorch 1.0"),
        ({"davit_version": "7"}, "newer davit"),
        ({"kind": "clock"}, "make no sense"),
    ],
)
def test_code_for_other_machines_is_refused(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    from torch._inductor.codecache import get_device_information

    here = {**get_device_information("cpu"), "torch": ".".join(torch.__version__.split(".")[:2])}
    with pytest.raises(CheckpointError, match=message):
        TorchBackend(package(tmp_path / "model.pt2", **{**here, **changed}), trust=True)
    with pytest.raises(CheckpointError, match="PyTorch cannot load it"):
        TorchBackend(package(tmp_path / "model.pt2", **here), trust=True)


def test_packages_are_known_by_what_they_hold(tmp_path: Path) -> None:
    assert exported_format(package(tmp_path / "renamed")) == "torch"
    assert is_torch_package(tmp_path / "none.pt2")
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pth")  # a zip archive, too
    assert exported_format(tmp_path / "weights.pth") is None


def test_what_cannot_be_compiled_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="detectors cannot be compiled by AOTInductor"):
        export(detector("retinanet"), tmp_path / "model.pt2", "torch")
    with pytest.raises(ValueError, match=r"ends in \.pt2"):
        export(classifier(), tmp_path / "model.pt", "torch")
    assert list(tmp_path.iterdir()) == []
