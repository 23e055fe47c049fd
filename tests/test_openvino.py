"""OpenVINO files: written, compared, run, scored, and refused where something is wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import openvino
import pytest
import torch

import davit
from davit.cli import main
from davit.inference.backends import openvino_ir
from davit.inference.backends.opening import exported_format, open_backend
from davit.inference.backends.openvino_ir import OpenVinoBackend, OpenVinoModel, export_openvino
from davit.inference.export import ParityError, export
from davit.inference.predictor import Predictor
from davit.models.dense import DenseBackbone
from davit.weights.checkpoint import CheckpointError
from spoken_models import model_of, pictures, same
from test_onnx import BARE, CLASSES, classifier


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Threads wait for each other on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, its OpenVINO files and the comparison."""
    folder = tmp_path_factory.mktemp("openvino")
    davit.save(classifier(), folder / "model.safetensors")
    assert main(["export", str(folder / "model.safetensors"), str(folder / "model.xml")]) == 0
    return folder


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    shutil.copy(exported / "model.bin", tmp_path)
    return Path(shutil.copy(exported / "model.xml", tmp_path))


@pytest.mark.parametrize("hint", ["latency", "throughput"])
@pytest.mark.parametrize("shape", [(1, 97, 130), (5, 64, 64), (7, 33, 45), (1, 5, 300), (1, 1, 1)])
def test_logits_are_the_models_at_any_size_and_batch(exported: Path, shape: tuple[int, int, int], hint: str) -> None:
    batch, height, width = shape
    images = torch.randn(batch, height, width, 3).permute(0, 3, 1, 2)  # as preprocessing lays them out
    with torch.inference_mode():
        wanted = classifier()(images)
    found = OpenVinoBackend(exported / "model.xml", threads=2, hint=hint)(images)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_answers_stay_when_others_are_computed(exported: Path) -> None:
    backend = OpenVinoBackend(exported / "model.xml", threads=1)
    first = backend(torch.ones(2, 3, 40, 40))
    kept = first.clone()
    backend(torch.randn(2, 3, 40, 40))
    assert torch.equal(first, kept)


SIGNALLED = """
import faulthandler, os, signal, sys, threading
faulthandler.enable()  # signal handlers get a stack of their own, as under pytest
import torch
from davit.inference.backends.openvino_ir import OpenVinoBackend
backends = [OpenVinoBackend(sys.argv[1], threads=1) for _ in range(2)]
for backend in backends:
    backend(torch.zeros(1, 3, 32, 32))
del backend
thread = threading.Thread(target=backends.clear)  # the last use of a plugin, on another thread
thread.start()
thread.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""


def test_signals_are_handled_after_models_are_gone(exported: Path) -> None:
    command = [sys.executable, "-c", SIGNALLED, str(exported / "model.xml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["handled", "alive"]), done.stderr


def test_the_file_says_what_the_checkpoint_says(exported: Path) -> None:
    backend, model = OpenVinoBackend(exported / "model.xml"), davit.load(exported / "model.safetensors")
    assert (backend.config, backend.preprocessing, backend.kind) == (
        model.config,
        model.preprocessing,
        "classification",
    )
    assert backend.classes == CLASSES
    provenance = OpenVinoModel(exported / "model.xml").header.provenance
    assert provenance["checkpoint"] == str(exported / "model.safetensors")


def test_anyone_can_run_the_file(exported: Path) -> None:
    core = openvino.Core()
    model = core.read_model(exported / "model.xml")
    assert [(x.any_name, str(x.partial_shape)) for x in model.inputs] == [("images", "[?,3,?,?]")]
    assert [(x.any_name, str(x.partial_shape)) for x in model.outputs] == [("logits", "[?,3]")]
    assert {x.get_element_type() for x in model.get_ordered_ops() if x.get_type_name() == "Constant"} >= {
        openvino.Type.f32
    }
    assert openvino.Type.f16 not in {x.get_element_type() for x in model.get_ordered_ops()}


def test_prediction_and_evaluation_take_the_file(
    exported: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "val" / "green").rename(folder / "val" / "grün")
    paths = sorted((folder / "val").rglob("*.png"))
    renamed = exported / "renamed"
    shutil.copy(exported / "model.xml", renamed)
    assert exported_format(renamed) == "openvino"
    theirs, ours = (Predictor.load(exported / name, device="cpu")(paths) for name in ("model.xml", "model.safetensors"))
    for a, b in zip(ours, theirs, strict=True):
        assert (a.labels, a.source) == (b.labels, b.source)
        assert a.scores == pytest.approx(b.scores, abs=1e-5)
    said = []
    for name in ("model.xml", "model.safetensors"):
        words = ["evaluate", str(exported / name), "--data", str(folder / "val"), "--workers", "0", "--json"]
        assert main(words) == 0
        said.append({**json.loads(capsys.readouterr().out), "checkpoint": ""})
    assert said[0] == said[1]
    assert said[0]["count"] == 6


def test_the_comparison_lies_beside_the_file(exported: Path) -> None:
    report = json.loads((exported / "model.xml.parity.json").read_text())
    assert report["failures"] == []
    assert 0 < report["largest"]["logits"] < 1e-4
    assert len({one["shape"][0] for one in report["comparisons"]}) >= 3


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_every_flipped_bit_is_found(copied: Path, name: str) -> None:
    path = copied.with_name(name)
    raw = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(raw), 40).tolist():
        damaged = bytearray(raw)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.(xml|bin): damaged"):
            OpenVinoBackend(copied)


@pytest.mark.parametrize("content", [b"", b"<net name='theirs' version='11'></net>", b"cut"])
def test_damaged_files_and_those_of_others_are_named(
    copied: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    copied.write_bytes(copied.read_bytes()[:5000] if content == b"cut" else content)
    assert main(["predict", "anywhere.png", "--model", str(copied)]) == 2
    with pytest.raises(CheckpointError, match="damaged, or not written by `davit export`"):
        open_backend(copied)


def test_weights_that_are_not_there(copied: Path) -> None:
    copied.with_suffix(".bin").unlink()
    with pytest.raises(OSError, match=r"model\.bin"):
        open_backend(copied)


def test_a_file_that_differs_is_never_left(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def another(model: object, path: Path, **rest: object) -> None:
        shutil.copy(exported / "model.bin", path.with_suffix(".bin"))
        shutil.copy(exported / "model.xml", path)

    monkeypatch.setattr(openvino_ir, "export_openvino", another)
    model = classifier()
    with torch.no_grad():
        model.head.bias[1] += 0.001
    (tmp_path / "other.xml").write_bytes(b"what was there")
    with pytest.raises(ParityError, match=r"logits differ by 0\.001"):
        export(model, tmp_path / "other.xml", "openvino")
    assert (tmp_path / "other.xml").read_bytes() == b"what was there"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "davit_tiny"}, "leave the variant out"),
        ({"device": "meta"}, "device 'meta'"),
        ({"backend": "native"}, "is computed by OpenVINO"),
    ],
)
def test_wrong_use_gets_one_line(exported: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_backend(exported / "model.xml", **settings)
    backend = open_backend(exported / "model.xml")
    with pytest.raises(ValueError, match=r"model\.xml takes images \(B, 3, H, W\), got \(1, 1, 8, 8\)"):
        backend(torch.zeros(1, 1, 8, 8))


def test_missing_packages_are_named(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    (tmp_path / "a.png").write_bytes(b"")
    for words in (
        ("predict", str(tmp_path / "a.png"), "--model", str(exported / "model.xml")),
        ("export", str(exported / "model.safetensors"), str(tmp_path / "model.xml")),
    ):
        assert main(list(words)) == 2
        assert "pip install 'davit[openvino]'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("Exception from src/core/serialize.cpp:1:\nCheck 'good' failed\ncannot write weights")

    monkeypatch.setattr(openvino_ir, "_converted", lambda model, folder: openvino.Model([], [], "none"))
    monkeypatch.setattr(openvino, "save_model", full)
    with pytest.raises(OSError, match=r"could not save .*model\.xml: cannot write weights"):
        export(classifier(), tmp_path / "model.xml", "openvino")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scale", ["channels", "tokens"])
def test_a_backbone_gives_four_maps(tmp_path: Path, scale: Literal["channels", "tokens"]) -> None:
    """Scaled by tokens, as Florence-2's are, too."""
    model = DenseBackbone(BARE.override(channel_scale=scale, merge_kernel=2 if scale == "channels" else 3)).eval()
    export_openvino(model, tmp_path / "maps.xml")
    run = OpenVinoModel(tmp_path / "maps.xml", threads=1)
    for shape in [(1, 3, 64, 64), (3, 3, 97, 130)]:
        images = torch.randn(shape)
        with torch.inference_mode():
            for ours, theirs in zip(model(images), run(images), strict=True):
                torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="backbone without a head"):
        OpenVinoBackend(tmp_path / "maps.xml")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retinanet", "segmenter"])
def test_dense_models_at_any_size_and_batch(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    parity = export(model, tmp_path / "model.xml", "openvino")
    assert parity.failures == []
    backend = OpenVinoBackend(tmp_path / "model.xml", threads=1, hint="throughput")
    for batch, height, width in [(1, 64, 96), (3, 97, 130)]:
        images = pictures(batch, height, width)
        with torch.inference_mode():
            wanted = model(images)
        if kind == "segmenter":
            torch.testing.assert_close(backend(images), wanted.logits, atol=1e-4, rtol=0)
        else:
            assert same(wanted, backend(images)) > 10
