"""ONNX files of classifiers and backbones: written, compared, run, scored, and refused where something is wrong."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

import davit
from davit import atomic
from davit.cli import main
from davit.inference.backends import onnx_export
from davit.inference.backends.onnx_export import export_onnx
from davit.inference.backends.onnx_runtime import OnnxBackend, OnnxModel
from davit.inference.export import ParityError, export
from davit.inference.parity import compare
from davit.inference.predictor import Predictor
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.dense import DenseBackbone
from davit.preprocessing import Preprocessing
from davit.weights.checkpoint import CheckpointError

# Both attentions and little else: exporting takes as long as there are operations.
BARE = DaViTConfig(widths=(32, 32, 64, 64), depths=(1, 1, 1, 1), window=4, mlp=False, conv_position=False)
CLASSES = ("blue", "grün", "red")


def classifier() -> Classifier:
    torch.manual_seed(5)
    model = Classifier(ClassifierConfig(backbone=BARE, num_classes=3)).eval()
    nn.init.normal_(model.head.weight)
    model.preprocessing = Preprocessing.imagenet(48)
    model.classes = CLASSES
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, its ONNX file and the comparison of both."""
    folder = tmp_path_factory.mktemp("onnx")
    davit.save(classifier(), folder / "model.safetensors")
    assert main(["export", str(folder / "model.safetensors"), str(folder / "model.onnx")]) == 0
    return folder


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(exported / "model.onnx", tmp_path / "model.onnx"))


@pytest.mark.parametrize("shape", [(1, 97, 130), (2, 64, 64), (7, 33, 45), (1, 224, 224), (1, 5, 300), (1, 1, 1)])
def test_logits_are_the_models_at_any_size_and_batch(exported: Path, shape: tuple[int, int, int]) -> None:
    batch, height, width = shape
    images = torch.randn(batch, 3, height, width)
    with torch.inference_mode():
        wanted = classifier()(images)
    found = OnnxBackend(exported / "model.onnx", threads=1)(images)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_onnx_accepts_the_file_and_anyone_can_run_it(exported: Path) -> None:
    path = exported / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    assert [entry.version for entry in onnx.load(path).opset_import if entry.domain == ""] == [20]
    session = onnxruntime.InferenceSession(path)
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [
        ("images", ["batch", 3, "height", "width"], "tensor(float)")
    ]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", ["batch", 3])]


def test_the_file_says_what_the_checkpoint_says(exported: Path) -> None:
    backend, model = OnnxBackend(exported / "model.onnx"), davit.load(exported / "model.safetensors")
    assert backend.config == model.config
    assert backend.preprocessing == model.preprocessing
    assert backend.classes == CLASSES
    assert backend.kind == "classification"
    provenance = OnnxModel(exported / "model.onnx").header.provenance
    assert provenance["checkpoint"] == str(exported / "model.safetensors")
    assert provenance["davit"] == davit.__version__


def test_prediction_and_evaluation_take_the_file(
    exported: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: object) -> dict | list:
        assert main([*map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    renamed = shutil.copy(exported / "model.onnx", tmp_path / "model")  # known by its content
    for path in (exported / "model.onnx", renamed):
        theirs = Predictor.load(path)(sorted((folder / "val" / "red").iterdir()))
        ours = Predictor.load(exported / "model.safetensors", device="cpu")(sorted((folder / "val" / "red").iterdir()))
        for a, b in zip(ours, theirs, strict=True):
            assert (a.labels, a.source) == (b.labels, b.source)
            assert a.scores == pytest.approx(b.scores, abs=1e-5)
    told = said("predict", folder / "val", "--model", exported / "model.onnx", "--top", 1)
    assert [entry["top"][0]["label"] in CLASSES for entry in told] == [True] * len(told)
    (folder / "val" / "green").rename(folder / "val" / "grün")
    for size in ((), ("--size", 40)):
        words = ("--data", folder / "val", "--workers", 0, *size)
        a, b = (said("evaluate", exported / name, *words) for name in ("model.safetensors", "model.onnx"))
        assert {**a, "checkpoint": ""} == {**b, "checkpoint": ""}
        assert a["count"] == 6


def test_the_comparison_lies_beside_the_file(exported: Path) -> None:
    report = json.loads((exported / "model.onnx.parity.json").read_text())
    assert report["failures"] == []
    assert report["tolerances"] == {"outputs": 1e-4}
    assert 0 < report["largest"]["logits"] < 1e-4
    assert [48, 48] in [one["shape"][2:] for one in report["comparisons"]]
    assert len({one["shape"][0] for one in report["comparisons"]}) >= 3


def test_pictures_are_compared_too(exported: Path) -> None:
    backend = OnnxBackend(exported / "model.onnx")
    parity = compare(classifier(), backend, "model.onnx", [("a.png", torch.randn(3, 50, 61))])
    assert (parity.comparisons[-1].images, parity.comparisons[-1].shape) == ("a.png", (1, 3, 50, 61))


def test_another_weight_is_a_difference(exported: Path) -> None:
    model = classifier()
    with torch.no_grad():
        model.backbone.stages[2].blocks[0].channel.attn.proj.weight[3, 4] += 0.2
    parity = compare(model, OnnxBackend(exported / "model.onnx"), "model.onnx")
    assert len(parity.failures) == len(parity.comparisons)
    assert "logits differ by" in parity.failures[0]


@pytest.fixture
def instead(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting copies the file made before, for it takes seconds."""
    monkeypatch.setattr(
        onnx_export, "export_onnx", lambda model, path, **rest: shutil.copy(exported / "model.onnx", path)
    )


def test_a_file_that_differs_is_never_left(
    instead: None, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = classifier()
    with torch.no_grad():
        model.head.bias[1] += 0.001
    davit.save(model, tmp_path / "other.safetensors")
    code = main(["export", str(tmp_path / "other.safetensors"), str(tmp_path / "other.onnx"), "--json"])
    said = capsys.readouterr()
    assert code == 1
    assert "logits differ by 0.001" in said.err
    assert "was deleted" in said.err
    assert json.loads(said.out)["failures"]
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]
    (tmp_path / "other.onnx").write_bytes(b"what was there")
    with pytest.raises(ParityError):
        export(model, tmp_path / "other.onnx")
    assert (tmp_path / "other.onnx").read_bytes() == b"what was there"


def test_every_flipped_bit_is_found(copied: Path) -> None:
    raw = copied.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(raw), 60).tolist():
        damaged = bytearray(raw)
        damaged[place] ^= 1 << place % 8
        copied.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.onnx: damaged"):
            OnnxBackend(copied)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no onnx", b"cut"])
def test_damaged_files_are_named(copied: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    copied.write_bytes(copied.read_bytes()[:5000] if content == b"cut" else content)
    assert main(["evaluate", str(copied), "--data", "anywhere"]) == 2
    assert "model.onnx: damaged, or not written by `davit export`" in capsys.readouterr().err


def small_graph() -> onnx.ModelProto:
    """A file that someone else wrote."""
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("in", "out")]
    same = onnx.helper.make_node("Identity", ["in"], ["out"])
    return onnx.helper.make_model(onnx.helper.make_graph([same], "theirs", ends[:1], ends[1:]))


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    onnx.save(small_graph(), tmp_path / "their.onnx")
    with pytest.raises(CheckpointError, match=r"their\.onnx.*does not say how images are prepared"):
        Predictor.load(tmp_path / "their.onnx")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("export", "{model}", "{folder}/model.pt"), "ends in .onnx, got"),
        (("export", "{model}", "{folder}/none/model.onnx"), "none does not exist"),
        (("export", "{model}", "{folder}/model.onnx", "--images", "{folder}/none"), "no such file or folder"),
        (("export", "{model}", "{folder}/model.onnx", "--format", "tensorflow"), "onnx"),
        (("predict", "{folder}/a.png", "--model", "{onnx}", "--variant", "davit_tiny"), "leave the variant out"),
        (("predict", "{folder}/a.png", "--model", "{onnx}", "--device", "cuda"), "device 'cuda' cannot be used"),
        (("predict", "{folder}/a.png", "--model", "{folder}/no.onnx"), "No such file"),
    ],
)
def test_wrong_use_gets_one_line(
    words: tuple[str, ...], message: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    names = {"model": exported / "model.safetensors", "onnx": exported / "model.onnx", "folder": tmp_path}
    try:
        code = main([word.format(**names) for word in words])
    except SystemExit as ended:  # of the parser of arguments
        code = ended.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_missing_packages_are_named(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words: dict[str, tuple[str, ...]] = {
        "onnxruntime": ("predict", str(exported), "--model", str(exported / "model.onnx")),
        "onnxscript": ("export", str(exported / "model.safetensors"), str(tmp_path / "model.onnx")),
    }
    Image.new("RGB", (40, 40)).save(exported / "a.png")
    for package, command in words.items():
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            assert main(list(command)) == 2
        assert "pip install 'davit[onnx]'" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(onnx_export, "_traced", lambda model: onnx_ir.from_proto(small_graph()))
    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match=r"could not save .*model\.onnx: No space left"):
        export(classifier(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def differences(model: nn.Module, run: Callable[[torch.Tensor], list[torch.Tensor]], shape: tuple[int, ...]) -> float:
    images = torch.randn(shape)
    with torch.inference_mode():
        pairs = zip(model(images), run(images), strict=True)
        return max(float((a - b).abs().max()) for a, b in pairs)


def test_a_backbone_gives_four_maps_and_weights_may_lie_beside(tmp_path: Path) -> None:
    model = DenseBackbone(BARE).eval()
    export_onnx(model, tmp_path / "maps.onnx", inline_limit=100_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps.onnx", "maps.onnx.data"]
    assert (tmp_path / "maps.onnx").stat().st_size < 300_000
    for shape in [(1, 3, 64, 64), (3, 3, 97, 130)]:
        assert differences(model, OnnxModel(tmp_path / "maps.onnx"), shape) < 1e-4
    with pytest.raises(ValueError, match="backbone without a head"):
        Predictor.load(tmp_path / "maps.onnx")
    raw = bytearray((tmp_path / "maps.onnx.data").read_bytes())
    raw[1000] ^= 1
    (tmp_path / "maps.onnx.data").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"maps\.onnx\.data: damaged"):
        OnnxModel(tmp_path / "maps.onnx")
    (tmp_path / "maps.onnx.data").unlink()
    with pytest.raises((CheckpointError, OSError), match=r"maps\.onnx"):
        OnnxModel(tmp_path / "maps.onnx")
