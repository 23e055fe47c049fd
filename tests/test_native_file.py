"""Files for the native engine: the same bits back, and no damaged one is taken."""

import struct
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

import davit
from davit.inference.backends.native.artefact import is_native_file, read_native, write_native
from davit.inference.backends.native.backend import NativeBackend
from davit.inference.backends.native.quantization import Quantization
from davit.inference.backends.native.stored import StoredTensors
from davit.inference.backends.native.weights import layer_names
from davit.models.davit import DaViT
from davit.models.segmenter_config import SegmenterConfig
from davit.models.upernet import Segmenter
from davit.preprocessing import Preprocessing
from davit.weights.checkpoint import CheckpointError, is_checkpoint
from davit.weights.save import save
from small_detectors import talkative
from test_native_engine import SMALL, classifier, lively

SOME = Quantization(layers=tuple(layer_names(SMALL)[3:]), kept=tuple(layer_names(SMALL)[:3]), error=0.01, images=3)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def ready(model):
    model.preprocessing, model.classes = Preprocessing(size=(48, 64)), ("eins", "zwei", "drei", "vier")
    return model


@pytest.mark.parametrize("quantization", [None, SOME], ids=["float32", "int8"])
def test_a_classifier_comes_back_to_the_bit(tmp_path, quantization):
    model = ready(classifier(classes=4))
    write_native(tmp_path / "a.davit", model, quantization, provenance={"score": 1})
    back = read_native(tmp_path / "a.davit", threads=2)
    images = torch.randn(3, 3, 50, 70)
    assert back(images).equal(NativeBackend(model, quantization=quantization)(images))
    assert (back.kind, back.classes, back.config) == ("classification", model.classes, model.config)
    assert (back.preprocessing, back.quantization) == (model.preprocessing, quantization)


def test_a_detector_comes_back_to_the_bit(tmp_path):
    model = talkative("retinanet")
    model.preprocessing = Preprocessing(size=(64, 96))
    every = Quantization(layers=tuple(layer_names(model.config.backbone)))
    write_native(tmp_path / "a.davit", model, every)
    back, images = read_native(tmp_path / "a.davit"), torch.randn(2, 3, 64, 96)
    for found, wanted in zip(back(images), NativeBackend(model, quantization=every)(images), strict=True):
        assert len(found.boxes)
        assert found.boxes.equal(wanted.boxes)
        assert found.scores.equal(wanted.scores)
    assert (back.kind, back.config) == ("detection", model.config)


def test_a_segmenter_comes_back_to_the_bit(tmp_path):
    model = ready(Segmenter(SegmenterConfig(backbone=SMALL, num_classes=4)).eval())
    write_native(tmp_path / "a.davit", model, SOME)
    images = torch.randn(2, 3, 64, 96)
    back = read_native(tmp_path / "a.davit")
    assert back(images).equal(NativeBackend(model, quantization=SOME)(images))
    assert (back.kind, back.classes) == ("segmentation", model.classes)


def test_int8_weights_are_kept_as_int8(tmp_path):
    model = ready(classifier(classes=4))
    write_native(tmp_path / "a.davit", model)
    write_native(tmp_path / "b.davit", model, SOME)
    sizes = [(tmp_path / name).stat().st_size for name in ("a.davit", "b.davit")]
    assert sizes[1] < 0.5 * sizes[0]
    with safe_open(tmp_path / "b.davit", framework="pt") as file:
        types = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 (not a mapping)
    assert types["native.stages.3.blocks.0.channel.attn.qkv.value.codes"] == torch.int8
    assert types["native.stages.0.blocks.0.window.attn.qkv.weight"] == torch.float32
    assert "native.stages.3.blocks.0.channel.mlp.fc1.weight" not in types


def test_it_is_known_by_name_or_header(tmp_path):
    model = ready(classifier(classes=4))
    write_native(tmp_path / "a.davit", model)
    save(model, tmp_path / "b.safetensors")
    (tmp_path / "a.davit").rename(tmp_path / "a.bin")
    (tmp_path / "c.davit").write_bytes(b"")
    names = ("a.bin", "b.safetensors", "c.davit", "none.safetensors", ".")
    assert [is_native_file(tmp_path / name) for name in names] == [True, False, True, False, False]
    assert [is_checkpoint(tmp_path / name) for name in names[:2]] == [False, True]
    assert read_native(tmp_path / "a.bin").kind == "classification"


@pytest.mark.parametrize("quantization", [None, SOME], ids=["float32", "int8"])
def test_opening_does_not_load_pytorchs_compiler(tmp_path, quantization):
    """That takes seconds; arithmetic on meta tensors does it."""
    write_native(tmp_path / "a.davit", ready(classifier(classes=4)), quantization)
    code = f"""
import sys
from davit.inference.predictor import Predictor
Predictor.load({str(tmp_path / "a.davit")!r})
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is told by /proc")
def test_opening_holds_the_weights_once(tmp_path):
    """The file is never in memory beside what is packed of it."""
    model = davit.create_model("davit_nano").eval()
    write_native(tmp_path / "nano.davit", model)
    code = f"""
import re
from pathlib import Path
from davit.inference.backends.native.artefact import read_native
from davit.inference.backends.native.engine import _checked_library
_checked_library()
def memory(key):
    return 1024 * int(re.search(key + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
opened = read_native({str(tmp_path / "nano.davit")!r})
print(memory("VmHWM") - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1.6 * sum(4 * parameter.numel() for parameter in model.parameters())


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.davit"
    write_native(path, ready(classifier(classes=4)))
    read = StoredTensors.__getitem__

    def changed(self, name):
        with path.open("r+b") as file:
            file.seek(-4, 2)
            file.write(b"1234")
        return read(self, name)

    monkeypatch.setattr(StoredTensors, "__getitem__", changed)
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        read_native(path)

    def cut(self, name):
        path.write_bytes(path.read_bytes()[:200])
        return read(self, name)

    monkeypatch.setattr(StoredTensors, "__getitem__", cut)
    write_native(path, ready(classifier(classes=4)))
    with pytest.raises(CheckpointError, match="was cut while it was read"):
        read_native(path)


def test_damage_is_found(tmp_path):
    path = tmp_path / "a.davit"
    write_native(path, ready(classifier(classes=4)), SOME)
    raw = path.read_bytes()
    length = 8 + struct.unpack("<Q", raw[:8])[0]
    places = [*range(8), *torch.randint(8, length, (25,)).tolist(), *torch.randint(length, len(raw), (25,)).tolist()]
    for place in places:
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << int(torch.randint(0, 8, ()))]) + raw[place + 1 :])
        with pytest.raises(CheckpointError, match=r"a\.davit.*export"):
            read_native(path)
    for damaged in (b"", raw[:5], raw[: length - 3], raw[:-1], raw + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"a\.davit"):
            read_native(path)
    path.write_bytes(raw)
    read_native(path)


def test_a_checkpoint_is_no_file_for_the_engine(tmp_path):
    save(ready(classifier(classes=4)), tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"b\.safetensors"):
        read_native(tmp_path / "b.safetensors")


def test_what_cannot_be_written_is_refused(tmp_path):
    model = ready(classifier(classes=4))
    with pytest.raises(ValueError, match=r"ends in \.davit, got .*a\.safetensors"):
        write_native(tmp_path / "a.safetensors", model)
    with pytest.raises(ValueError, match="head, got a DaViT"):
        write_native(tmp_path / "a.davit", lively(DaViT(SMALL)))
    with pytest.raises(ValueError, match="stages"):
        write_native(tmp_path / "a.davit", model, Quantization(layers=("stages.9.blocks",)))
    model.preprocessing = None
    with pytest.raises(ValueError, match="preprocessing"):
        write_native(tmp_path / "a.davit", model)
    assert list(tmp_path.iterdir()) == []
