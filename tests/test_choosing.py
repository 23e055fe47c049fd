"""Which backend computes: chosen by measuring, remembered, and never another answer."""

import json
import time

import numpy as np
import pytest
import torch
from PIL import Image

import davit
from davit.cli import main
from davit.inference.backends import choosing
from davit.inference.backends.choosing import AutoBackend, choose, make_backend
from davit.inference.backends.eager import EagerBackend
from davit.inference.backends.native.backend import NativeBackend
from davit.inference.backends.native.build import NativeError
from davit.inference.predictor import Predictor
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.models.segmenter_config import SegmenterConfig, UPerNetHead
from davit.models.upernet import Segmenter
from davit.preprocessing import Preprocessing
from davit.weights.save import save
from small_detectors import TINY, talkative


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """Choices of this test alone."""
    torch.set_num_threads(1)
    monkeypatch.setattr(choosing, "choices_file", lambda: tmp_path / "cache" / "backends.json")


def classifier() -> Classifier:
    model = Classifier(ClassifierConfig(backbone=TINY, num_classes=3)).eval()
    torch.nn.init.normal_(model.head.weight)
    model.preprocessing = Preprocessing.imagenet(64)
    model.classes = ("cat", "dog", "fish")
    return model


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)).save(path)
    return path


class Slow:
    """A candidate that takes its time and counts its calls."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls = seconds, 0

    def __call__(self, images):
        """Return the images."""
        self.calls += 1
        time.sleep(self.seconds)
        return images


def test_the_fastest_is_chosen_and_remembered():
    images = torch.zeros(2, 3, 8, 8)
    slow, fast = Slow(0.05), Slow(0.0)
    choice = choose({"eager": slow, "native": fast}, images, "a model")
    assert choice.backend == "native"
    assert choice.seconds["eager"] > choice.seconds["native"]
    assert "2x3x8x8" in choice.reason

    slow.calls = fast.calls = 0
    assert choose({"eager": fast, "native": slow}, images, "a model") == choice
    assert slow.calls == fast.calls == 0
    other = choose({"eager": fast, "native": slow}, images[:1], "a model")
    assert other.backend == "eager"
    assert slow.calls > 0


@pytest.mark.parametrize("content", ["{", "[]", '{"KEY": {"backend": "native"}}', '{"KEY": 3}'])
def test_a_damaged_memory_is_measured_anew(content, monkeypatch):
    monkeypatch.setattr(choosing, "_key", lambda *_: "KEY")
    path = choosing.choices_file()
    path.parent.mkdir()
    path.write_text(content)
    assert choose({"eager": Slow(0.0), "native": Slow(0.02)}, torch.zeros(1, 3, 8, 8), "a model").backend == "eager"
    assert json.loads(path.read_text())["KEY"]["backend"] == "eager"


def test_a_choice_that_is_not_there_now_is_measured_anew(monkeypatch):
    monkeypatch.setattr(choosing, "_key", lambda *_: "KEY")
    images = torch.zeros(1, 3, 8, 8)
    choose({"eager": Slow(0.02), "other": Slow(0.0)}, images, "a model")
    assert choose({"eager": Slow(0.02), "native": Slow(0.0)}, images, "a model").backend == "native"


def test_a_folder_that_cannot_be_written_costs_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(choosing, "choices_file", lambda: tmp_path / "file" / "backends.json")
    assert choose({"eager": Slow(0.02), "native": Slow(0.0)}, torch.zeros(1, 3, 8, 8), "a model").backend == "native"


@pytest.mark.parametrize("name", ["native", "eager", "auto"])
def test_predictions_do_not_depend_on_the_backend(name):
    model = classifier()
    images = torch.randn(2, 3, 64, 64)
    backend = make_backend(model, name, "cpu")
    wanted = EagerBackend(model, "cpu")
    assert (backend.kind, backend.classes, backend.preprocessing) == (wanted.kind, wanted.classes, wanted.preprocessing)
    torch.testing.assert_close(backend(images), wanted(images), rtol=1e-5, atol=1e-5)


def test_auto_says_what_it_chose_and_why():
    said = []
    backend = make_backend(classifier(), "auto", "cpu", tell=said.append)
    assert isinstance(backend, AutoBackend)
    assert backend.choice is None
    for _ in range(2):
        backend(torch.randn(1, 3, 64, 64))
    assert len(said) == 1
    assert backend.choice.backend in said[0]
    assert {"eager", "native"} == set(backend.choice.seconds)


def test_without_a_compiler_auto_warns_and_computes_all_the_same(monkeypatch):
    def refuse(*_):
        raise NativeError("there is no C++ compiler here")

    monkeypatch.setattr(choosing, "NativeBackend", refuse)
    model = classifier()
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler here.*PyTorch instead") as told:
        backend = make_backend(model, "auto", "cpu")
    assert len(told) == 1
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert backend(images).equal(model(images))
    assert backend.choice.backend == "eager"
    with pytest.raises(NativeError, match="no C"):
        make_backend(classifier(), "native")


def test_auto_computes_what_the_engine_does_not_know():
    config = DaViTConfig(widths=(32, 64, 96, 128), depths=(1, 1, 1, 1), head_width=16)
    model = Classifier(ClassifierConfig(backbone=config, num_classes=3)).eval()
    model.preprocessing = Preprocessing.imagenet(64)
    backend = make_backend(model, "auto", "cpu")
    assert backend(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    assert "head_width=16" in backend.choice.reason


def test_bad_names_and_devices_are_refused():
    with pytest.raises(ValueError, match="nativ"):
        make_backend(classifier(), "nativ")
    with pytest.raises(ValueError, match="nativ"):
        davit.optimize(classifier(), "nativ")
    with pytest.raises(ValueError, match="'meta' holds no numbers"):
        make_backend(classifier(), "native", "meta")


def dense(kind: str):
    if kind == "segmenter":
        head = UPerNetHead(channels=16, auxiliary_channels=8, pool_sizes=(1, 2))
        return Segmenter(SegmenterConfig(backbone=TINY, head=head, num_classes=4)).eval()
    return {"backbone": DaViT, "dense backbone": DenseBackbone}[kind](TINY).eval()


@pytest.mark.parametrize("backend", ["auto", "native", "eager"])
@pytest.mark.parametrize("kind", ["classifier", "backbone", "dense backbone", "segmenter"])
def test_an_optimized_model_has_the_models_inputs_and_outputs(kind, backend):
    model = classifier() if kind == "classifier" else dense(kind)
    images = torch.randn(2, 3, 50, 71)
    fast = davit.optimize(model, backend)
    with torch.inference_mode():
        wanted = model(images)
    found = fast(images)
    pairs = [(found, wanted)] if isinstance(wanted, torch.Tensor) else list(zip(found, wanted, strict=True))
    assert len(pairs) == {"classifier": 1, "segmenter": 2}.get(kind, 4)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert fast.choice.reason in repr(fast)


def test_another_model_or_number_of_threads_is_measured_anew(monkeypatch):
    measured = []
    monkeypatch.setattr(choosing, "measure", lambda calls: measured.append(1) or dict.fromkeys(calls, 1.0))
    images = torch.randn(1, 3, 32, 32)
    backbone = dense("backbone")
    for model, threads in ((backbone, None), (backbone, 2), (dense("dense backbone"), None), (backbone, None)):
        davit.optimize(model, threads=threads)(images)
    assert len(measured) == 3


def test_an_optimized_detector_takes_the_sizes_of_images():
    model = talkative("mask_rcnn")
    images = torch.randn(2, 3, 64, 96)
    sizes = [(64, 96), (50, 64)]
    with torch.inference_mode():
        wanted = model(images, sizes=sizes)
    for one, other in zip(davit.optimize(model, "native")(images, sizes=sizes), wanted, strict=True):
        assert len(one.boxes) == len(other.boxes) > 0
        torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-3, atol=1e-2)


def test_the_command_line_tells_the_choice_and_gives_the_same_answer(tmp_path, capsys, picture):
    save(classifier(), tmp_path / "model.safetensors")
    answers = []
    for name in ("eager", "native", "auto"):
        assert (
            main(["predict", "--model", str(tmp_path / "model.safetensors"), str(picture), "--json", "--backend", name])
            == 0
        )
        printed = capsys.readouterr()
        answers.append(json.loads(printed.out))
        assert ("computing with" in printed.err) == (name == "auto")
    labels = [[one["label"] for one in answer[0]["top"]] for answer in answers]
    assert labels[0] == labels[1] == labels[2]


def test_a_predictor_takes_the_name_of_a_backend(picture):
    model = classifier()
    assert isinstance(Predictor(model, backend="native").backend, NativeBackend)
    first, second = (Predictor(model, device="cpu", backend=name)(picture)[0] for name in ("eager", "auto"))
    assert first.labels == second.labels
