"""The checkpoint file: what goes in comes out, whatever is damaged is noticed, and a failed save leaves no trace."""

import errno
import json
import os
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import davit
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.preprocessing import Preprocessing
from davit.weights.checkpoint import CheckpointError, Header, is_checkpoint, read_checkpoint, read_header
from davit.weights.checkpoint import write_checkpoint as write
from foreign import randomise

TINY = DaViTConfig(widths=(32, 32, 32, 32), depths=(1, 1, 1, 1), drop_path=0.1, gradient_checkpointing=True)


@pytest.fixture
def classifier() -> Classifier:
    model = randomise(Classifier(ClassifierConfig(backbone=TINY, num_classes=3)))
    model.preprocessing = Preprocessing(size=(48, 64), fit="squash", interpolation="bilinear")
    model.classes = ("Ä", "b, c", "日本")
    return model


@pytest.fixture
def saved(classifier: Classifier, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    davit.save(classifier, path, provenance={"source": "a test", "score": {"top1": 0.5}})
    return path


def test_classifier_round_trip(classifier: Classifier, saved: Path) -> None:
    loaded = davit.load(saved)
    assert isinstance(loaded, Classifier)
    assert not loaded.training
    assert loaded.preprocessing == classifier.preprocessing
    assert loaded.classes == classifier.classes
    assert loaded.config.backbone == TINY.override(drop_path=0.0, gradient_checkpointing=False)
    state = loaded.state_dict()
    assert set(state) == set(classifier.state_dict())
    assert all(torch.equal(state[key], value) for key, value in classifier.state_dict().items())
    images = torch.randn(1, 3, 40, 40)
    assert torch.equal(loaded(images), classifier(images))
    assert all(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("cls", [DaViT, DenseBackbone])
def test_backbone_round_trip(cls: type, tmp_path: Path) -> None:
    model = randomise(cls(TINY))
    davit.save(model, tmp_path / "b.safetensors")
    loaded = davit.load(tmp_path / "b.safetensors", drop_path=0.2)
    assert type(loaded) is cls
    assert loaded.preprocessing is None
    assert loaded.config.drop_path == 0.2
    images = torch.randn(1, 3, 40, 40)
    assert all(torch.equal(a, b) for a, b in zip(loaded(images), model(images), strict=True))


def test_header_alone(saved: Path) -> None:
    header = read_header(saved)
    assert header.kind == "classifier"
    assert header.classes == ("Ä", "b, c", "日本")
    assert header.provenance == {"davit": davit.__version__, "source": "a test", "score": {"top1": 0.5}}


def test_same_model_same_bytes(classifier: Classifier, saved: Path, tmp_path: Path) -> None:
    davit.save(classifier, tmp_path / "again.safetensors", provenance={"source": "a test", "score": {"top1": 0.5}})
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_other_readers(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        assert file.metadata()["format"] == "pt"
        assert "head.weight" in list(file.keys())


def test_precisions(tmp_path: Path) -> None:
    header = Header(kind="backbone", config=TINY)
    tensors = {
        "a": torch.randn(3).half(),
        "b": torch.randn(5, 1, dtype=torch.float64),
        "c": torch.randn(7).bfloat16(),
        "d": torch.tensor(2.0),
        "e": torch.randn(6, 4).T,
    }
    write(tmp_path / "p.safetensors", header, tensors)
    _, found = read_checkpoint(tmp_path / "p.safetensors")
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in tensors.items())
    with pytest.raises(ValueError, match="floating point"):
        write(tmp_path / "i.safetensors", header, {"a": torch.ones(2, dtype=torch.int32)})
    with pytest.raises(ValueError, match="meta"):
        write(tmp_path / "m.safetensors", header, {"a": torch.ones(2, device="meta")})


def flips(raw: bytes) -> list[int]:
    """Bits to flip: all of the length, and a fair share of header and data."""
    header = 8 + struct.unpack("<Q", raw[:8])[0]
    rng = random.Random(0)
    return [
        *range(64),
        *(rng.randrange(64, header * 8) for _ in range(400)),
        *(rng.randrange(header * 8, len(raw) * 8) for _ in range(60)),
    ]


def test_any_flipped_bit_is_noticed(saved: Path, tmp_path: Path) -> None:
    raw = saved.read_bytes()
    header = 8 + struct.unpack("<Q", raw[:8])[0]
    broken = tmp_path / "broken.safetensors"
    for bit in flips(raw):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << (bit % 8)
        broken.write_bytes(damaged)
        assert is_checkpoint(broken)
        with pytest.raises(CheckpointError, match=r"broken\.safetensors") as caught:
            read_checkpoint(broken)
        assert ("tensor " if bit // 8 >= header else "header") in str(caught.value), (bit, str(caught.value))
        with pytest.raises(CheckpointError, match=r"broken\.safetensors"):
            davit.load(broken)


def test_the_damaged_tensor_is_named(saved: Path) -> None:
    raw = bytearray(saved.read_bytes())
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    entry = json.loads(raw[8:start])["head.bias"]
    raw[start + entry["data_offsets"][0]] ^= 1
    saved.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"tensor head\.bias is damaged"):
        davit.load(saved)


def test_any_truncation_is_noticed(saved: Path, tmp_path: Path) -> None:
    raw = saved.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in [0, 1, 7, 8, 9, 100, 5000, len(raw) // 2, len(raw) - 1]:
        cut.write_bytes(raw[:length])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
            davit.load(cut)
    cut.write_bytes(raw + b"\0")
    with pytest.raises(CheckpointError, match="longer"):
        davit.load(cut)


def test_newer_format(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("davit.weights.checkpoint.VERSION", "0")
    with pytest.raises(CheckpointError, match="upgrade davit"):
        davit.load(saved)


def test_full_disk_keeps_the_old_file(classifier: Classifier, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"could not save .*model\.safetensors: No space left on device") as caught:
        davit.save(classifier, saved)
    assert caught.value.errno == errno.ENOSPC
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_interrupted_save_leaves_nothing(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        davit.save(classifier, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_save_refuses(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        davit.save(classifier, tmp_path / "x.pth")
    with pytest.raises(OSError, match=r"the folder .*nowhere does not exist"):
        davit.save(classifier, tmp_path / "nowhere" / "x.safetensors")
    with pytest.raises(ValueError, match="got Linear"):
        davit.save(torch.nn.Linear(2, 2), tmp_path / "x.safetensors")
    classifier.classes = ("a", "b")
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        davit.save(classifier, tmp_path / "x.safetensors")
    classifier.classes = ("a", "b", "a")
    with pytest.raises(ValueError, match="must differ, got a "):
        davit.save(classifier, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_saves_through_a_link(classifier: Classifier, tmp_path: Path) -> None:
    target, link = tmp_path / "target.safetensors", tmp_path / "link.safetensors"
    davit.save(classifier, target)
    link.symlink_to(target)
    davit.save(classifier, link, provenance={"second": True})
    assert link.is_symlink()
    assert read_header(target).provenance["second"] is True


def test_a_variant_that_contradicts_the_file(saved: Path) -> None:
    with pytest.raises(ValueError, match="leave the variant out"):
        davit.load(saved, variant="davit_tiny")
    with pytest.raises(ValueError, match="unexpected"):
        davit.load(saved, depths=(1, 1, 2, 1)[::-1], widths=(32, 32, 32, 32), mlp=False)
    with pytest.raises(ValueError, match=r"Did you mean 'window'"):
        davit.load(saved, windows=7)
