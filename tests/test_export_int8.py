"""int8 files: made from images, judged beside float32, and deleted where they are worse."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import davit
from davit.cli import export_int8, main
from davit.cli.export_int8 import Calibration, find_int8, spread
from davit.data.scenes import Scenes
from davit.inference import export as export_module
from davit.inference import judging
from davit.inference.backends.native import artefact
from davit.inference.backends.opening import exported_format, open_backend
from davit.inference.export import Int8, ParityError, export
from davit.inference.judging import Judgement, Scores, agreement, race
from davit.inference.parity import compare
from davit.models.detections import DetectorOutput
from davit.models.upernet import Segmenter
from runs import colour_folder
from small_detectors import random_boxes
from spoken_models import detector, segmenter, spoken
from test_onnx import CLASSES, classifier


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Threads wait for each other on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    colour_folder(tmp_path / "data" / "train", names=CLASSES, images=6)
    colour_folder(tmp_path / "data" / "val", names=CLASSES, images=5)
    davit.save(classifier(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Times of float32 and int8 that do not hang on the machine."""
    times = SimpleNamespace(float32=2.0, int8=1.0)
    monkeypatch.setattr(export_module, "race", lambda *_: ((times.float32, times.int8), times.float32 / times.int8))
    return times


def run(checkpoint: Path, out: str, *words: str) -> int:
    data = checkpoint.parent / "data"
    command = ["export", str(checkpoint), str(checkpoint.with_name(out)), "--int8", "--calibrate", str(data), *words]
    return main(command)


def left(checkpoint: Path) -> list[str]:
    return sorted(path.name for path in checkpoint.parent.iterdir())


@pytest.mark.parametrize("out", ["model.davit", "model.xml"])
def test_an_int8_file_is_smaller_and_gives_the_models_answers(
    out: str, checkpoint: Path, quick: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkpoint, out, "--max-drop", "100", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(checkpoint.with_name(f"{out}.parity.json").read_text())
    judged = report["judgement"]
    assert judged["calibrated"] == 18
    assert (judged["scores"]["metric"], judged["scores"]["images"]) == ("top1", 15)
    assert report["drop"] == pytest.approx(100 * (judged["scores"]["float32"] - judged["scores"]["int8"]))
    assert judged["agreement"] >= 0.9
    assert exported_format(checkpoint.with_name(out)) == {"model.xml": "openvino", "model.davit": "native"}[out]
    images = torch.randn(3, 3, 50, 61)
    with torch.inference_mode():
        wanted = classifier()(images)
    found = open_backend(checkpoint.with_name(out))(images)
    error = float((found - wanted).square().mean().sqrt() / wanted.std())
    assert 1e-6 < error < 0.2  # not float32, and not something else
    weights = checkpoint.with_suffix(".bin") if out == "model.xml" else checkpoint.with_name(out)
    assert weights.stat().st_size < 0.8 * checkpoint.stat().st_size
    assert not [name for name in left(checkpoint) if name.endswith(".tmp")]


def test_int8_that_is_slower_is_deleted(
    checkpoint: Path, quick: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    quick.int8 = 3.0
    assert run(checkpoint, "model.davit", "--max-drop", "100") == 1
    said = capsys.readouterr().err
    assert (
        "is not good enough and was deleted: int8 is slower than float32: 3.0 ms for a batch of 8, not 2.0 ms" in said
    )
    assert left(checkpoint) == ["data", "model.safetensors"]


def test_int8_that_loses_more_than_allowed_is_deleted(
    checkpoint: Path, quick: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = iter((0.9, 0.88) * 2)
    monkeypatch.setattr(export_int8, "_score", lambda *_: ("top1", 15, next(right)))
    assert run(checkpoint, "model.davit", "--max-drop", "1.9", "--json") == 1
    said = capsys.readouterr()
    assert "int8 loses 2.00 points of top1 on 15 images, allowed are 1.9" in said.err
    assert json.loads(said.out)["drop"] == pytest.approx(2.0)
    assert left(checkpoint) == ["data", "model.safetensors"]
    assert run(checkpoint, "model.davit", "--max-drop", "2.1") == 0
    assert "top1 88.00 %, not 90.00 %, on 15 images; 2.1 points may be lost" in capsys.readouterr().out


def test_int8_that_answers_otherwise_is_deleted(
    quick: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one made for another model."""
    model, write = classifier(), artefact.write_native

    def spoiled(path: Path, written: object, quantization: object = None, **rest: object) -> None:
        other = classifier()
        if quantization:
            with torch.no_grad():
                other.head.weight.copy_(-other.head.weight)
        write(path, other, quantization, **rest)

    monkeypatch.setattr(artefact, "write_native", spoiled)
    pictures = list(torch.randn(16, 3, 48, 48))
    with pytest.raises(ParityError, match="of the float32 answers on 16 pictures, wanted are 90 %"):
        export(model, tmp_path / "model.davit", "native", int8=Int8(images=pictures, pictures=pictures))
    assert list(tmp_path.iterdir()) == []


def test_without_labels_the_answers_are_compared(
    checkpoint: Path, quick: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = checkpoint.parent / "flat"
    flat.mkdir()
    for index, path in enumerate(sorted((checkpoint.parent / "data").rglob("*.png"))):
        path.rename(flat / f"{index}.png")
    words = ("export", checkpoint, checkpoint.with_name("m.davit"), "--int8", "--calibrate", flat, "--fit", 20)
    assert main([*map(str, words)]) == 0
    said = capsys.readouterr()
    assert "no labels are used" in said.err
    assert "fitted to 20 images" in said.out
    assert "% of its answers on 13 pictures" in said.out
    assert "top1" not in said.out


@pytest.mark.parametrize(("kind", "metric"), [("segmenter", "miou"), ("retinanet", "box_ap")])
def test_dense_models_are_judged_by_their_labels(
    kind: str, metric: str, tmp_path: Path, quick: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of made-up weights, whose answers no int8 has to keep."""
    monkeypatch.setattr(judging, "AGREEMENT", 0.0)
    scenes = Scenes("test", 6, "detection" if kind == "retinanet" else "segmentation", size=96)
    (tmp_path / "data" / "val").mkdir(parents=True)
    (tmp_path / "data" / "val_masks").mkdir()
    for index in range(6):
        picture, annotation = scenes[index]
        picture.save(tmp_path / "data" / "val" / f"{index}.png")
        if kind == "segmenter":
            Image.fromarray(annotation).save(tmp_path / "data" / "val_masks" / f"{index}.png")
    if kind == "retinanet":
        truth = scenes.ground_truth()
        for index, image in enumerate(truth["images"]):
            image["file_name"] = f"{index}.png"
        (tmp_path / "data" / "val_masks").rmdir()
        (tmp_path / "data" / "val").rename(tmp_path / "data" / "val2017")
        (tmp_path / "data" / "annotations").mkdir()
        (tmp_path / "data" / "annotations" / "instances_val2017.json").write_text(json.dumps(truth))
    else:
        (tmp_path / "data" / "classes.txt").write_text("\n".join(scenes.classes) + "\n")
    model = detector(kind) if kind == "retinanet" else Segmenter(replace(segmenter().config, num_classes=11))
    model = spoken(model)
    model.classes = tuple(scenes.classes)
    settings = Calibration(data=tmp_path / "data", fitted=2, judged=3, max_drop=100)
    parity = export(model, tmp_path / "model.davit", "native", int8=find_int8(model, settings))
    assert parity.judgement is not None
    assert parity.judgement.scores is not None
    assert (parity.judgement.scores.metric, parity.judgement.scores.images) == (metric, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("m.onnx", "--int8", "--calibrate", "{data}"), "int8 files are for openvino and native, got onnx"),
        (("m.pt2", "--int8", "--calibrate", "{data}"), "int8 files are for openvino and native, got torch"),
        (("m.davit", "--int8"), "--int8 takes --calibrate DIR"),
        (("m.davit", "--calibrate", "{data}"), "--calibrate is for --int8"),
        (("m.davit", "--int8", "--calibrate", "{data}/none"), "none"),
        (("m.davit", "--int8", "--calibrate", "{data}", "--max-drop", "-1"), "max_drop must be at least 0"),
        (("m.davit", "--int8", "--calibrate", "{data}", "--fit", "0"), "--fit must be at least 1"),
        (("m.xml", "--format", "native"), "the name of a file for the native engine ends in .davit"),
    ],
)
def test_wrong_use_gets_one_line(
    words: tuple[str, ...], message: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, *rest = (word.format(data=checkpoint.parent / "data") for word in words)
    assert main(["export", str(checkpoint), str(checkpoint.with_name(out)), *rest]) == 2
    assert message in capsys.readouterr().err
    assert left(checkpoint) == ["data", "model.safetensors"]


def test_a_judgement_names_what_is_wrong() -> None:
    settings = {"calibrated": 9, "images": 8, "batch": 4, "milliseconds": (2.0, 1.0), "speedup": 2.0, "max_drop": 0.5}
    scores = Scores(metric="top1", images=100, float32=0.9, int8=0.896)
    assert Judgement(**settings, agreement=0.95, scores=scores).failures == []
    for changed in (
        {"agreement": float("nan")},
        {"speedup": 0.99},
        {"scores": Scores(metric="top1", images=100, float32=0.9, int8=0.89)},
    ):
        assert len(Judgement(**{**settings, "agreement": None, "scores": None, **changed}).failures) == 1


def test_agreement_counts_answers_of_each_kind() -> None:
    pictures = list(torch.zeros(4, 3, 8, 8))
    numbers = iter([0, 1, 2, 3])
    first = lambda images: torch.eye(5)[:1]  # noqa: E731
    assert agreement("classifier", first, lambda images: torch.eye(5)[[next(numbers)]], pictures) == 0.25
    maps = torch.randn(1, 3, 4, 4)
    other = maps.clone()
    other[..., 0] = -other[..., 0]
    same = (maps.argmax(1) == other.argmax(1)).float().mean()
    assert agreement("segmenter", lambda _: maps, lambda _: other, pictures) == pytest.approx(float(same))
    boxes, scores = random_boxes(4, 90, 90, least=20), torch.tensor([0.9, 0.8, 0.6, 0.3])
    found = DetectorOutput(boxes, scores, torch.arange(4))
    assert agreement("detector", lambda _: [found], lambda _: [found], pictures) == 1.0
    fewer = DetectorOutput(boxes[1:] + 0.5, scores[1:], torch.arange(1, 4))
    assert agreement("detector", lambda _: [found], lambda _: [fewer], pictures) == pytest.approx(4 / 5)
    assert agreement("dense", lambda _: [], lambda _: [], pictures) is None


def test_the_race_is_run_in_turns() -> None:
    log: list[str] = []
    milliseconds, speedup = race(lambda _: log.append("a"), lambda _: log.append("b"), torch.zeros(1))
    assert log == ["a", "b"] * (len(log) // 2)
    assert len(log) >= 8
    assert min(*milliseconds, speedup) > 0


def test_int8_must_compute_numbers_at_every_size() -> None:
    model = classifier().requires_grad_(False)
    assert compare(model, lambda images: model(images) + 3, "x", precision="int8").failures == []
    for wrong in (lambda images: model(images) * float("nan"), lambda images: model(images)[:, :2]):
        found = compare(model, wrong, "x", precision="int8")
        assert len(found.failures) == len(found.comparisons)


def test_numbers_are_evenly_spread() -> None:
    assert spread(3, 5) == [0, 1, 2]
    assert spread(10, 4) == [0, 2, 5, 7]
