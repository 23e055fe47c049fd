"""The report of a run: which pictures it chooses, and what it says about the run."""

import re
from pathlib import Path

import pytest
import torch

from davit.data.evaluation_loader import evaluation_batches
from davit.evaluation.evaluate import evaluate
from davit.explain import run_report
from davit.explain.dense_report import _classes
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.preprocessing import Preprocessing
from davit.recipes import make_recipe
from davit.records import assign
from davit.tasks.classification import ClassificationMetric
from davit.train.build import build_images
from davit.train.run import RunResult, write_json
from runs import colour_folder


def finished_run(tmp_path: Path, images: int) -> RunResult:
    root = colour_folder(tmp_path / "pictures", images=images)
    recipe = assign(make_recipe("finetune", "davit_pico"), "data.root", str(root))
    recipe = assign(assign(recipe, "data.validation_share", "0.5"), "data.workers", "0")
    found = build_images(recipe.data, 0)
    config = DaViTConfig(widths=(16, 16, 16, 16), depths=(1, 1, 1, 1), head_width=8, window=3)
    model = Classifier(ClassifierConfig(backbone=config, num_classes=3)).eval()
    model.preprocessing, model.classes = Preprocessing.imagenet(32), found.train.classes
    metric = ClassificationMetric(3)
    scores = evaluate(model, evaluation_batches(found.validation, model.preprocessing, batch_size=8, workers=0), metric)
    more = {"seconds": 1.0, "images_per_second": 5.0, "parameters": 1, "macs": 1, "steps": 3}
    metrics = scores | more | {"skipped_steps": 2, "unreadable_samples": 7, "replaced_files": ["red/3.png: cut short"]}
    write_json(tmp_path / "environment.json", {"torch": "9.9", "gpus": []})
    return RunResult(
        recipe=recipe, folder=tmp_path, model=model, metrics=metrics, history=[], metric=metric, images=found
    )


def test_the_surest_mistakes_of_a_run_are_found_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_report, "WRONG", 5)
    monkeypatch.setattr(run_report, "BATCH", 4)
    result = finished_run(tmp_path, images=16)
    images, model = result.images.validation, result.model
    assert model.preprocessing is not None
    mistakes = []
    for index in range(len(images)):  # one at a time, unlike the report
        picture, target = images[index]
        with torch.inference_mode():
            scores = model(model.preprocessing(picture)[None]).softmax(-1)[0]
        if int(scores.argmax()) != target:
            mistakes.append((float(scores.max()), run_report.file_name(images, index)))
    samples, searched = run_report.choose_samples(result)
    assert searched == len(images)
    wrong = [sample for sample in samples if sample.prediction != sample.target]
    assert [sample.score for sample in wrong] == pytest.approx([score for score, _ in sorted(mistakes)[::-1][:5]])
    assert {sample.name for sample in wrong} <= {name for _, name in mistakes}
    assert all((tmp_path / "pictures" / sample.name).is_file() for sample in samples)
    page = run_report.write_run_report(result).read_text()
    for text in ("2 steps were skipped", "7 training samples could not be read", "held out for validation", "9.9"):
        assert text in page
    assert wrong[0].name in page


def test_large_validation_sets_are_sampled_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_report, "SEARCHED", 6)
    result = finished_run(tmp_path, images=12)
    samples, searched = run_report.choose_samples(result)
    assert len(samples) <= searched <= 6 < len(result.images.validation)
    assert f"chosen among {searched} of the images" in run_report.write_run_report(result).read_text()


def test_every_column_of_the_classes_has_its_head() -> None:
    rows = {"4": {"iou": 0.9, "accuracy": 0.95, "pixels": 40}, "9": {"iou": 0.2, "accuracy": None, "pixels": 7}}
    head, worst, best = re.findall(r"<tr>(.*?)</tr>", _classes(rows))
    assert re.findall(r">([^<]+)</th>", head) == ["class", "iou", "accuracy", "pixels"]
    assert re.findall(r">([^<]+)</td>", worst) == ["9", "20 %", "not there", "7"]
    assert re.findall(r">([^<]+)</td>", best) == ["4", "90 %", "95 %", "40"]
