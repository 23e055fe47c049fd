"""`davit convert` and `davit models` as a user runs them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import davit
from davit.cli import main
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.models.variants import VARIANTS
from davit.weights.checkpoint import read_header
from davit.weights.convert.florence2 import FLORENCE2
from davit.weights.export import TARGETS
from foreign import DEPTHS, WIDTHS, randomise, write

PAPER = DaViTConfig(widths=WIDTHS, depths=DEPTHS)
FLORENCE = PAPER.override(window=12, merge_kernel=3, channel_scale="tokens")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = randomise(Classifier(ClassifierConfig(backbone=PAPER, num_classes=3)))
    model.classes = ("a", "b", "c")
    davit.save(model, tmp_path / "ours.safetensors", provenance={"source": "test"})
    return tmp_path / "ours.safetensors"


@pytest.mark.parametrize("target", ["official", "timm", "mmpretrain"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_there_and_back(target: str, suffix: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, back = checkpoint.with_name(f"there{suffix}"), checkpoint.with_name("back.safetensors")
    assert main(["convert", str(checkpoint), str(there), "--to", target]) == 0
    assert main(["convert", str(there), str(back), "--window", "7", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.split("\n", 2)[2])
    assert report["from"] == target
    assert report["kind"] == "classifier"
    wanted, found = load_file(checkpoint), load_file(back)
    assert set(found) == set(wanted)
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    provenance = read_header(back).provenance
    assert provenance["format"] == target
    assert provenance["command"] == f"davit convert {there} {back} --window 7 --json"


def test_whole_model_to_tower_in_half_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tower = randomise(DaViT(FLORENCE)).half()
    whole = {f"vision_tower.{key}": value for key, value in FLORENCE2.from_ours(tower.state_dict()).items()}
    write({**whole, "language_model.x": torch.ones(2)}, tmp_path / "whole.safetensors")
    arguments = ["convert", str(tmp_path / "whole.safetensors"), str(tmp_path / "tower.safetensors"), "--window", "12"]
    assert main([*arguments, "--to", "florence2-native"]) == 0
    said = capsys.readouterr().out
    assert "left out 1 tensors: language_model.x" in said
    assert "float16" in said
    assert {value.dtype for value in load_file(tmp_path / "tower.safetensors").values()} == {torch.float16}
    assert main([*arguments]) == 0
    assert davit.load(tmp_path / "tower.safetensors").config == FLORENCE


REFUSALS = [
    ("paper", "florence2", "no classifier head|scales by channels"),
    ("florence", "official", "scales by tokens, and code that reads official scales by channels"),
    ("florence", "florence2", None),
    ("florence-classifier", "florence2", "no classifier head; save its .backbone"),
    ("backbone", "official-dense", "lacks the norms"),
    ("backbone", "official", None),
    ("paper", "official-dense", "the authors' dense code reads the official format"),
    ("dense", "official-dense", None),
    ("dense", "timm", "no place for the norms of the four maps"),
    ("overlapped", "mmpretrain", "no overlapped"),
    ("flipped", "timm", "window then channel"),
    ("flipped", "davit", None),
]


@pytest.mark.parametrize(("model", "target", "reason"), REFUSALS)
def test_refusals(
    model: str, target: str, reason: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {
        "paper": lambda: Classifier(ClassifierConfig(backbone=PAPER, num_classes=3)),
        "florence": lambda: DaViT(FLORENCE),
        "florence-classifier": lambda: Classifier(ClassifierConfig(backbone=FLORENCE, num_classes=3)),
        "backbone": lambda: DaViT(PAPER),
        "dense": lambda: DenseBackbone(PAPER),
        "overlapped": lambda: DaViT(PAPER.override(merge_kernel=3)),
        "flipped": lambda: DaViT(PAPER.override(attentions=("channel", "window"))),
    }
    davit.save(models[model](), tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    code = main(["convert", str(tmp_path / "in.safetensors"), str(out), "--to", target])
    error = capsys.readouterr().err
    assert (code == 0) == (reason is None) == out.exists()
    if reason:
        assert code == 2
        assert re.search(reason, error), error
        assert len(error.splitlines()) == 1


def test_user_errors_are_one_line(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        [str(checkpoint), str(checkpoint.with_suffix(".onnx")), "--to", "timm"],
        [str(checkpoint), str(checkpoint.with_suffix(".pth"))],
        ["nothing.pth", "x.safetensors"],
        ["davit_tyni.msft_in1k", "x.safetensors"],
    ):
        assert main(["convert", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("davit convert: error: ")
        assert len(error.splitlines()) == 1


def test_targets_on_the_command_line() -> None:
    from typing import get_args

    from davit.cli.convert import Target

    assert get_args(Target) == TARGETS


def test_models_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if not line.startswith(" ")} == {"name", *VARIANTS}
    assert main(["models", "florence2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["davit_base_florence2", "davit_huge_florence2"]
    assert rows[0]["parameters"] == 90_368_000
    assert main(["models", "msft_in1k"]) == 0
    assert "82.694" in capsys.readouterr().out
    assert main(["models", "davit_tyni"]) == 2
    assert "Did you mean 'davit_tiny'" in capsys.readouterr().err


def test_models_does_not_import_torch() -> None:
    code = "import sys; from davit.cli import main; main(['models']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("verb", ["convert", "models"])
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert f"usage: davit {verb}" in capsys.readouterr().out
