"""The verbs on detectors and segmenters: train from files, evaluate, predict, check, show."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import davit
from davit.cli import main
from davit.data.scenes import Scenes
from davit.train.recipe import Recipe
from davit.train.run import run
from runs import tiny_dense_recipe


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digit scenes in COCO's layout."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    for part, split, count in (("train", "train", 12), ("val", "test", 5)):
        scenes = Scenes(split, count, "detection", size=96)
        truth = scenes.ground_truth()
        (root / f"{part}2017").mkdir()
        for index, image in enumerate(truth["images"]):
            image["file_name"] = f"{index}.png"
            scenes[index][0].save(root / f"{part}2017" / f"{index}.png")
        (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(truth))
    return root


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digit scenes beside index masks."""
    root = tmp_path_factory.mktemp("masks")
    for part, split, count in (("train", "train", 12), ("val", "test", 5)):
        scenes = Scenes(split, count, "segmentation", size=96)
        for folder in (root / part, root / f"{part}_masks"):
            folder.mkdir()
        for index in range(count):
            picture, classes = scenes[index]
            picture.save(root / part / f"{index}.png")
            Image.fromarray(classes).save(root / f"{part}_masks" / f"{index}.png")
    (root / "classes.txt").write_text("\n".join(scenes.classes) + "\n")
    return root


def trained(name: str, root: Path, folder: Path) -> Path:
    """A model of a very short run on these files."""
    source = "masks" if name == "digits.segmentation" else "coco"
    recipe: Recipe = tiny_dense_recipe(name, data__source=source, data__root=str(root), schedule__epochs="1")
    run(recipe, folder)
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def detector(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained("digits.detection", coco, tmp_path_factory.mktemp("run") / "detector")


@pytest.fixture(scope="module")
def segmenter(masks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained("digits.segmentation", masks, tmp_path_factory.mktemp("run") / "segmenter")


Say = Callable[..., dict]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a verb with --json and read what it says."""

    def said(*words: object) -> dict:
        assert main([*map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return said


def test_evaluation_repeats_the_scores_of_the_run(
    detector: Path, segmenter: Path, coco: Path, masks: Path, say: Say
) -> None:
    for model, data, keys in ((detector, coco, ("box_ap", "mask_ap")), (segmenter, masks, ("miou", "aacc", "macc"))):
        metrics = json.loads((model.parent / "metrics.json").read_text())
        report = say("evaluate", model, "--data", data, "--workers", 0)
        assert {key: report[key] for key in keys} == {key: metrics[key] for key in keys}
        assert report["count"] == 5
        assert list(report["per_class"])[-1] == "9"


def test_the_table_shows_counts_as_counts(segmenter: Path, masks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(segmenter), "--data", str(masks), "--workers", "0", "--per-class"]) == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["class"] == ["class", "iou", "accuracy", "pixels"]
    true = sum(np.sum(np.asarray(Image.open(path)) == 0) for path in (masks / "val_masks").iterdir())
    assert lines["background"][-1] == f"{true:,}"
    assert lines["count"] == ["count", "5"]


def test_pictures_that_cannot_be_decoded_stop_it_or_are_left_out(
    detector: Path, segmenter: Path, coco: Path, masks: Path, tmp_path: Path, say: Say, capsys
) -> None:
    """The others score as if the broken one had never been there."""
    for model, data, part in ((detector, coco, "val2017"), (segmenter, masks, "val")):
        root = tmp_path / data.name
        shutil.copytree(data, root)
        words = ("evaluate", model, "--data", root, "--workers", 0)
        (root / part / "2.png").write_bytes(b"text")
        assert main([*map(str, words)]) == 2
        assert "2.png" in capsys.readouterr().err
        left = say(*words, "--allow-missing")
        assert left["count"] == 4
        assert len(left["left_out"]) == 1
        assert "2.png" in left["left_out"][0]
        if data is coco:
            path = root / "annotations" / "instances_val2017.json"
            truth = json.loads(path.read_text())
            image = truth["images"].pop(2)
            truth["annotations"] = [found for found in truth["annotations"] if found["image_id"] != image["id"]]
            path.write_text(json.dumps(truth))
        (root / part / "2.png").unlink()
        (root / "val_masks" / "2.png").unlink(missing_ok=True)
        without = say(*words)
        assert without["left_out"] == []
        assert left["per_class"] == without["per_class"]


def test_prediction_draws_and_writes_coco_results(detector: Path, coco: Path, tmp_path: Path, say: Say) -> None:
    pictures = sorted((coco / "val2017").iterdir())
    found = say("predict", *pictures, "--model", detector, "--save", tmp_path / "drawn", "--threshold", 0.0)
    results = json.loads((tmp_path / "drawn" / "results.json").read_text())
    assert [image["file_name"] for image in results["images"]] == [str(path) for path in pictures]
    assert len(results["annotations"]) == sum(len(entry["objects"]) for entry in found)
    assert [category["name"] for category in results["categories"]] == list(davit.load(detector).classes)
    for path in pictures:
        assert Image.open(tmp_path / "drawn" / f"{path.stem}.png").size == (96, 96)
    none = say("predict", pictures[0], "--model", detector, "--threshold", 1.0)
    assert none[0]["objects"] == []


def test_segmentation_writes_index_masks(segmenter: Path, masks: Path, tmp_path: Path, say: Say) -> None:
    said = say("predict", masks / "val" / "0.png", "--model", segmenter, "--save", tmp_path / "drawn")
    values = np.asarray(Image.open(tmp_path / "drawn" / "0.mask.png"))
    assert values.shape == (96, 96)
    shares = {name: np.mean(values == index) for index, name in enumerate(davit.load(segmenter).classes)}
    assert said[0]["classes"] == {name: pytest.approx(share, abs=1e-6) for name, share in shares.items() if share}
    assert Image.open(tmp_path / "drawn" / "0.png").width > 96  # the legend


def test_the_data_verbs_know_both(coco: Path, masks: Path, tmp_path: Path, say: Say) -> None:
    for root in (coco, masks):
        report = say("data", "check", root, "--workers", 0)
        assert report["levels"]["error"] == 0
        sheet = say("data", "show", root, "--images", 2, "--draws", 2, "--out", tmp_path / "sheet.png")
        assert Image.open(tmp_path / "sheet.png").size == (sheet["width"], sheet["height"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate", "{segmenter}", "--data", "{coco}"), "holds no pictures with masks"),
        (("evaluate", "{detector}", "--data", "{masks}"), "is no COCO data set"),
        (("predict", "{coco}/val2017", "--model", "{detector}", "--threshold", "2"), "--threshold must lie in 0 to 1"),
        (("train", "coco.mask_rcnn_1x", "model.init="), "data.root=DIR"),
        (("train", "coco.retinanet_1x", "model.head.kind=yolo"), "yolo"),
    ],
)
def test_wrong_use_gets_one_line(
    words: tuple[str, ...],
    message: str,
    detector: Path,
    segmenter: Path,
    coco: Path,
    masks: Path,
    capsys,
    tmp_path: Path,
) -> None:
    names = {"detector": detector, "segmenter": segmenter, "coco": coco, "masks": masks}
    given = [word.format(**names) for word in words]
    assert main(given + (["--out", str(tmp_path / "run")] if words[0] == "train" else [])) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_the_demo_of_detection_writes_a_page(tmp_path: Path) -> None:
    code = """
import sys
from dataclasses import replace
import davit.recipes, davit.cli.demo
from runs import tiny_dense_recipe
davit.recipes.make_recipe = lambda name: tiny_dense_recipe(name, schedule__epochs="1")
sys.exit(davit.cli.demo.main(sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "--task", "detection", "--out", str(tmp_path / "demo")],
        capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "box AP" in done.stdout
    assert (tmp_path / "demo" / "report.html").stat().st_size > 50_000
