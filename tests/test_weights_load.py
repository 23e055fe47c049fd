"""Files of other people to models: wrappers, precisions, folders, and files that must be refused."""

import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

import davit
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.models.variants import IMAGE_SIZES, VARIANTS
from davit.preprocessing import Preprocessing
from davit.weights.catalog import WEIGHTS, imagenet_classes
from davit.weights.checkpoint import CheckpointError
from davit.weights.convert.florence2 import FLORENCE2
from davit.weights.convert.official import OFFICIAL, OFFICIAL_DENSE
from davit.weights.convert.timm import TIMM
from davit.weights.load import read
from foreign import DEPTHS, WIDTHS, randomise, write

SMALL = DaViTConfig(widths=WIDTHS, depths=DEPTHS)


def classifier() -> Classifier:
    return randomise(Classifier(ClassifierConfig(backbone=SMALL, num_classes=4)))


def same(found: torch.nn.Module, wanted: torch.nn.Module) -> bool:
    state = found.state_dict()
    return all(torch.equal(state[key], value) for key, value in wanted.state_dict().items())


WRAPPERS = {
    "bare": lambda state: state,
    "ordered": OrderedDict,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    "model": lambda state: {"model": state, "optimizer": {"state": {}}},
    "nested": lambda state: {"model": {"state_dict": state}},
    "module": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "both": lambda state: {"state_dict": {k: v + 1 for k, v in state.items()}, "state_dict_ema": state},
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers(wrap: str, tmp_path: Path) -> None:
    model = classifier()
    path = tmp_path / "model.pth.tar"
    torch.save(WRAPPERS[wrap](OFFICIAL.from_ours(model.state_dict())), path)
    loaded = davit.load(path, window=7)
    assert isinstance(loaded, Classifier)
    assert not loaded.training
    assert loaded.config == model.config
    assert loaded.preprocessing == Preprocessing.imagenet(224)
    assert loaded.classes == ()
    assert same(loaded, model)


def test_class_names_that_mmcv_wrote(tmp_path: Path) -> None:
    state, path = OFFICIAL.from_ours(classifier().state_dict()), tmp_path / "m.pth"
    for names, wanted in ((("a", "b", "c ", "d"), ("a", "b", "c", "d")), (("a", "b"), ()), (("a", 1, "b", "c"), ())):
        torch.save({"meta": {"CLASSES": names, "epoch": 3}, "state_dict": state}, path)
        assert davit.load(path, window=7).classes == wanted


def test_half_precision_is_kept_by_read_and_widened_by_load(tmp_path: Path) -> None:
    model = randomise(DaViT(SMALL)).half()
    path = write(
        {f"vision_tower.{k}": v for k, v in FLORENCE2.from_ours(model.state_dict()).items()}, tmp_path / "f.bin"
    )
    weights = read(path, window=12)
    assert {tensor.dtype for tensor in weights.tensors.values()} == {torch.float16}
    loaded = davit.load(path, window=12)
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert same(loaded, model.float())


def test_dense(tmp_path: Path) -> None:
    model = randomise(DenseBackbone(SMALL))
    detector = {f"backbone.{k}": v for k, v in OFFICIAL_DENSE.from_ours(model.state_dict()).items()}
    torch.save({"state_dict": {**detector, "neck.x.weight": torch.ones(1)}}, tmp_path / "d.pth")
    loaded = davit.load(tmp_path / "d.pth", window=7)
    assert isinstance(loaded, DenseBackbone)
    assert same(loaded, model)


def test_folder(tmp_path: Path) -> None:
    model = classifier()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="found none"):
        davit.load(tmp_path)
    davit.save(model, tmp_path / "a.safetensors")
    assert same(davit.load(tmp_path), model)
    davit.save(model, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"found a\.safetensors, b\.safetensors: name one"):
        davit.load(str(tmp_path))


def test_names_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"unknown weights 'davit_tiny.msft'.*Did you mean 'davit_tiny.msft_in1k'"):
        davit.load("davit_tiny.msft")
    with pytest.raises(OSError, match=r"no file or folder nowhere/model\.pth"):
        davit.load("nowhere/model.pth")


class Hostile:
    """Leaves a folder behind when unpickled by code that trusts it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_hostile_pickles_do_not_run(save: object, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "model.pth"
    save({"state_dict": {"a": torch.ones(1)}, "x": Hostile(mark)}, path)
    with pytest.raises(CheckpointError, match=r"model\.pth: .*(not safe|damaged)"):
        davit.load(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "holds no tensors where they are looked for; it holds epoch"),
        ([torch.ones(1)], "holds a list instead of named tensors"),
        (torch.ones(1), "holds a Tensor instead"),
        ({"a": torch.ones(1), "epoch": 3}, "epoch among its tensors"),
        ({"a": torch.ones(1), "x": np.float32(1)}, "numpy.*not safe"),
        ({"_orig_mod.a": torch.ones(1), "a": torch.ones(1)}, "with and without"),
        ({"layer1.weight": torch.ones(1)}, "tells a DaViT format"),
    ],
)
def test_files_that_hold_something_else(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model\.pth: .*" + message):
        davit.load(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "raw", [b"", b"hello", b"hello world, this is text", b"PK\x03\x04" + b"\0" * 50, b"\x80\x02}q"]
)
def test_files_that_are_no_weights(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"model\.pth: "):
        davit.load(tmp_path / "model.pth")


def test_cut_files(tmp_path: Path) -> None:
    state = TIMM.from_ours(classifier().state_dict())
    for name in ("a.safetensors", "a.pth"):
        path = tmp_path / name
        write(state, path) if name.endswith("safetensors") else torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(CheckpointError, match=f"{name}: .*(truncated|damaged)"):
            davit.load(path, window=7)


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"

    def refused(message: str, **changes: torch.Tensor | None) -> None:
        state = TIMM.from_ours(classifier().state_dict())
        state |= {key.replace("__", "."): value for key, value in changes.items()}
        write({key: value for key, value in state.items() if value is not None}, path)
        with pytest.raises(ValueError, match=r"t\.safetensors: .*" + message):
            davit.load(path, window=7)

    refused(r"head\.bias \(our name\) has shape \(3,\), wanted \(4,\)", head__fc__bias=torch.ones(3))
    refused("has type torch.int64, wanted floating", head__fc__bias=torch.ones(4, dtype=torch.int64))
    refused(r"1 tensors missing: head\.bias", head__fc__bias=None)
    refused(r"stages\.1\.downsample\.proj\.weight .* is missing", stages__1__downsample__conv__weight=None)
    refused(r"norm\.weight, norm\.bias", head__norm__weight=None, head__norm__bias=None)
    refused("needs 4 axes", stem__conv__weight=torch.ones(3))


def test_x_decoder_is_not_taken_for_florence2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same names and shapes as Florence-2, but another window: only the name of the tower tells."""
    florence = SMALL.override(window=12, merge_kernel=3, channel_scale="tokens")
    monkeypatch.setitem(VARIANTS, "davit_test", florence)
    monkeypatch.setitem(IMAGE_SIZES, "davit_test", 768)
    theirs = FLORENCE2.from_ours(randomise(DaViT(florence)).state_dict())
    loaded = davit.load(write(theirs, tmp_path / "f.safetensors"))
    assert loaded.config == florence
    assert loaded.preprocessing == Preprocessing(size=(768, 768), crop=1.0, fit="squash")
    write({f"backbone.{key}": value for key, value in theirs.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r'window side cannot be told.*variant="davit_test"'):
        davit.load(tmp_path / "x.safetensors")
    assert davit.load(tmp_path / "x.safetensors", window=7).config.window == 7


def test_catalogue() -> None:
    for name, entry in WEIGHTS.items():
        assert entry.name == name
        assert name.startswith(f"{entry.variant}.")
        assert entry.licence in ("Apache-2.0", "MIT")
        assert (entry.num_classes == 1000) == bool(entry.score)
    names = imagenet_classes()
    assert len(set(names)) == len(names) == 1000
    assert names[0] == "tench, Tinca tinca"


def test_loading_is_quick_and_leaves_the_generator_alone(tmp_path: Path) -> None:
    davit.save(classifier(), tmp_path / "m.safetensors")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    davit.load(tmp_path / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_folder_means_its_final_model(tmp_path):
    model = davit.create_model("davit_pico", num_classes=2)
    davit.save(model, tmp_path / "model.safetensors")
    davit.save(davit.create_model("davit_pico", num_classes=3), tmp_path / "best.safetensors")
    assert torch.equal(davit.load(tmp_path).head.weight, model.head.weight)
