"""Scores: exact counts, the same as scikit-learn's, from the same code for everything."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, top_k_accuracy_score
from torch import Tensor, nn

import davit
from davit.cli import main
from davit.evaluation.accuracy import Accuracy
from davit.evaluation.evaluate import evaluate
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.preprocessing import Preprocessing
from davit.structures import Batch

CLASSES = ("cat", "dog", "fish", "bird")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    backbone = DaViTConfig(widths=(32, 64, 96, 128), depths=(1, 1, 1, 1))
    model = Classifier(ClassifierConfig(backbone=backbone, num_classes=4))
    nn.init.normal_(model.head.weight)
    model.preprocessing = Preprocessing.imagenet(32)
    model.classes = CLASSES
    path = tmp_path / "tiny.safetensors"
    davit.save(model, path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def test_accuracy_equals_scikit_learn() -> None:
    logits, targets = torch.randn(500, 7), torch.randint(0, 7, (500,))
    metric = Accuracy(7, confusion=True)
    for start in range(0, 500, 33):
        metric.update(logits[start : start + 33], targets[start : start + 33])
    scores = metric.compute()
    assert scores["top1"] == accuracy_score(targets, logits.argmax(1))
    assert scores["top5"] == top_k_accuracy_score(targets, logits, k=5)
    assert scores["count"] == 500
    assert metric.confusion is not None
    assert np.array_equal(metric.confusion, confusion_matrix(targets, logits.argmax(1)))
    per_class = metric.per_class(list("abcdefg"))
    assert sum(entry["count"] or 0 for entry in per_class.values()) == 500
    assert per_class["c"]["top1"] == accuracy_score(targets[targets == 2], logits[targets == 2].argmax(1))


@pytest.mark.parametrize("ranks", [2, 3])
def test_parts_add_up_to_the_whole(ranks: int) -> None:
    logits, targets = torch.randn(37, 9), torch.randint(0, 9, (37,))
    whole = Accuracy(9, confusion=True)
    whole.update(logits, targets)
    parts = [Accuracy(9, confusion=True) for _ in range(ranks)]
    for rank, part in enumerate(parts):
        part.update(logits[rank::ranks], targets[rank::ranks])
        if rank:
            parts[0].merge(part)
    assert parts[0].compute() == whole.compute()
    assert all(torch.equal(a, b) for a, b in zip(parts[0].counters(), whole.counters(), strict=True))


def test_fewer_than_five_classes_and_classes_without_images() -> None:
    metric = Accuracy(3)
    metric.update(torch.eye(3)[[0, 1]], torch.tensor([0, 2]))
    assert metric.compute() == {"top1": 0.5, "top5": 1.0, "count": 2}
    assert metric.per_class("abc")["b"] == {"count": 0, "top1": None}


def test_what_cannot_be_scored_is_refused() -> None:
    metric = Accuracy(3)
    with pytest.raises(ValueError, match="no image"):
        metric.compute()
    with pytest.raises(ValueError, match=r"\(B, 3\)"):
        metric.update(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    for target in (-1, 3):
        with pytest.raises(ValueError, match="0 to 2"):
            metric.update(torch.zeros(1, 3), torch.tensor([target]))
    with pytest.raises(ValueError, match="NaN"):
        metric.update(torch.full((1, 3), torch.nan), torch.tensor([0]))


def test_the_loop_takes_models_and_functions_alike_and_restores_the_mode() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(12, 4))
    model[2].eval()
    images, targets = torch.randn(10, 3, 2, 2), torch.randint(0, 4, (10,))
    batches = [Batch(images=images[:7], targets=targets[:7]), Batch(images=images[7:], targets=targets[7:])]
    modes = [module.training for module in model.modules()]
    first = evaluate(model, batches, Accuracy(4))
    assert [module.training for module in model.modules()] == modes

    def as_function(pixels: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return model[2](pixels.flatten(1))

    assert evaluate(as_function, batches, Accuracy(4)) == first  # so dropout was off
    assert first["count"] == 10


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["evaluate", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def expected_top1(checkpoint: Path, photos: Path) -> float:
    predictor = davit.Predictor.load(checkpoint)
    paths = sorted(photos.rglob("*.png"))
    found = predictor(paths, top=1)
    return sum(r.labels[0] == p.parent.name for r, p in zip(found, paths, strict=True)) / len(paths)


def test_the_command_scores_a_folder(checkpoint: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = []
    for workers in ("0", "2"):
        code, out, _ = run([str(checkpoint), "--data", str(photos), "--json", "--workers", workers], capsys)
        assert code == 0
        reports.append(json.loads(out))
    report = reports[0]
    assert reports[1] == report
    assert report["top1"] == expected_top1(checkpoint, photos)
    assert (report["top5"], report["count"], report["missing"]) == (1.0, 16, [])
    assert [entry["count"] for entry in report["per_class"].values()] == [4, 4, 4, 4]
    assert list(report["per_class"]) == list(CLASSES)
    assert report["preprocessing"]["size"] == [32, 32]

    code, out, _ = run([str(checkpoint), "--data", str(photos), "--per-class", "--workers", "0"], capsys)
    assert f"{100 * report['top1']:.2f} %" in out
    assert "fish" in out


def test_renamed_folders_are_refused_and_missing_ones_change_the_count(
    checkpoint: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "dog").rename(photos / "hound")
    code, _, err = run([str(checkpoint), "--data", str(photos)], capsys)
    assert code == 2
    assert "'hound'" in err
    assert "'dog'" in err
    (photos / "hound").rename(photos.parent / "hound")
    code, _, err = run([str(checkpoint), "--data", str(photos), "--workers", "0"], capsys)
    assert code == 2
    assert "--allow-missing" in err
    code, out, err = run(
        [str(checkpoint), "--data", str(photos), "--allow-missing", "--json", "--workers", "0"], capsys
    )
    assert code == 0
    assert (json.loads(out)["count"], json.loads(out)["missing"]) == (12, ["dog"])
    assert "1 of 4 classes" in err


def test_a_broken_image_ends_the_evaluation(checkpoint: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "cat" / "2.png").write_bytes(b"no picture")
    code, out, err = run([str(checkpoint), "--data", str(photos), "--workers", "2"], capsys)
    assert (code, out) == (2, "")
    assert str(photos / "cat" / "2.png") in err
    assert "Traceback" not in err


def test_val_crop_and_size(checkpoint: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos.parent / "data").mkdir()
    photos.rename(photos.parent / "data" / "val")
    data = photos.parent / "data"
    options = ["--crop", "1.0", "--size", "48", "--workers", "0", "--json"]
    code, out, err = run([str(checkpoint), "--data", str(data), *options], capsys)
    report = json.loads(out)
    assert code == 0
    assert (report["data"], report["preprocessing"]["size"]) == (str(data / "val"), [48, 48])
    assert report["preprocessing"]["crop"] == 1.0
    assert f"taking {data / 'val'}" in err
