"""`davit evaluate --data digits...`: the built-in test images."""

import json
from pathlib import Path

import pytest

import davit
from davit.cli import main
from davit.cli.builtin import KINDS
from davit.recipes import RECIPES
from davit.train import sides
from davit.train.run import run
from runs import colour_folder, tiny_dense_recipe, tiny_recipe

KEYS = {
    "digits": ("top1", "count"),
    "digits.detection": ("box_ap", "mask_ap", "count"),
    "digits.segmentation": ("miou", "aacc", "macc", "count"),
    "digits.contrastive": ("image_to_text_r1", "text_to_image_r5", "count"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of a very short run of each recipe, scored on three test scenes."""
    folder = tmp_path_factory.mktemp("runs")
    for name in KEYS:
        recipe = tiny_recipe if name == "digits" else lambda name=name, **fields: tiny_dense_recipe(name, **fields)
        run(recipe(schedule__epochs="1", schedule__warmup_epochs="0"), folder / name)
    return {name: folder / name / "model.safetensors" for name in KEYS}


@pytest.mark.parametrize("name", KEYS)
def test_scores_are_those_of_the_run(name: str, models: dict[str, Path], monkeypatch, capsys) -> None:
    monkeypatch.setattr(sides, "MOST_TEST_SCENES", 3)  # a tenth of the run's thirty
    assert main(["evaluate", str(models[name]), "--data", name, "--workers", "0", "--json"]) == 0
    report, metrics = (json.loads(text) for text in (capsys.readouterr().out, metrics_of(models[name])))
    assert {key: report[key] for key in KEYS[name]} == {key: metrics[key] for key in KEYS[name]}
    assert report["data"] == name


def test_every_built_in_recipe_has_test_images() -> None:
    assert set(KINDS) == {name for name in RECIPES if name.partition(".")[0] == "digits"}


def test_whatever_can_be_decoded_is_all_of_it(models: dict[str, Path], monkeypatch, capsys) -> None:
    monkeypatch.setattr(sides, "MOST_TEST_SCENES", 3)
    for name in ("digits", "digits.detection"):
        words = ["evaluate", str(models[name]), "--data", name, "--workers", "0", "--allow-missing", "--json"]
        assert main(words) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["left_out"] == []
        assert report["count"] == json.loads(metrics_of(models[name]))["count"]


def metrics_of(model: Path) -> str:
    return (model.parent / "metrics.json").read_text()


def test_images_of_another_kind_and_other_classes_are_refused(models: dict[str, Path], tmp_path: Path, capsys) -> None:
    told = {
        ("digits.detection", "digits.segmentation"): "take --data digits.detection or --data digits.retinanet",
        ("digits.segmentation", "digits"): "take --data digits.segmentation",
        ("digits", "digits.contrastive"): "take --data digits",
        ("digits.contrastive", "digits.detection"): "take --data digits.contrastive",
    }
    for (model, data), way in told.items():
        assert main(["evaluate", str(models[model]), "--data", data]) == 2
        assert way in capsys.readouterr().err
    davit.save(davit.create_model("davit_pico", num_classes=3, in_channels=1), tmp_path / "other.safetensors")
    assert main(["evaluate", str(tmp_path / "other.safetensors"), "--data", "digits", "--size", "32"]) == 2
    assert "digits has the classes 0, 1" in capsys.readouterr().err


def test_a_folder_of_that_name_goes_first(models: dict[str, Path], tmp_path: Path, monkeypatch, capsys) -> None:
    colour_folder(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(models["digits"]), "--data", "digits"]) == 2
    assert "blue" in capsys.readouterr().err
