"""ONNX files of detectors and segmenters: every object, mask and logit of the model, at any size and batch."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

import davit
from davit.cli import main
from davit.data.scenes import Scenes
from davit.inference.backends.onnx_detection import NOTHING, DetectionGraph, keep_apart
from davit.inference.backends.onnx_export import _Logits
from davit.inference.backends.onnx_runtime import OnnxBackend, read_outputs
from davit.inference.parity import Parity, compare, match
from davit.inference.predictor import Predictor
from davit.models.detections import DetectorOutput
from davit.models.detector import Detector
from davit.models.detector_config import DetectorConfig, DetectorHead
from davit.models.segmenter_config import SegmenterConfig, UPerNetHead
from davit.models.upernet import Segmenter, average
from davit.preprocessing import Preprocessing
from small_detectors import random_boxes
from test_onnx import BARE

KINDS = ("mask_rcnn", "retinanet")
CLASSES = tuple("0123456789")
SHAPES = [(1, 64, 96), (2, 97, 130), (3, 33, 120), (1, 31, 5), (1, 200, 330)]


def spoken(model: nn.Module) -> nn.Module:
    """Give heads weights that say something, as fresh ones do not, and nothing for sure: scores of 1 would tie."""
    for name, parameter in model.named_parameters():
        if not name.startswith(("backbone", "norms")):
            quiet = 0.2 if "regress" in name or "offsets" in name else 1.0
            deviation = quiet / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
            nn.init.normal_(parameter, std=deviation)
    model.preprocessing = Preprocessing(size=(96, 128), fit="within")
    model.classes = CLASSES
    return model.eval()


def detector(kind: str) -> Detector:
    head = DetectorHead(kind=kind, channels=16, hidden=24, candidates=120, proposals=80, anchor_scale=4.0)
    model = Detector(DetectorConfig(backbone=BARE, head=head, num_classes=10))
    spoken(model)
    return model


def segmenter() -> Segmenter:
    model = Segmenter(
        SegmenterConfig(backbone=BARE, head=UPerNetHead(channels=16, auxiliary_channels=8), num_classes=10)
    )
    spoken(model)
    return model


def model_of(kind: str) -> Detector | Segmenter:
    torch.manual_seed(3)
    return segmenter() if kind == "segmenter" else detector(kind)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a kind of model with a checkpoint and its ONNX file, exported once."""
    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            davit.save(model_of(kind), folders[kind] / "model.safetensors")
            words = ("export", folders[kind] / "model.safetensors", folders[kind] / "model.onnx")
            assert main([*map(str, words)]) == 0
        return folders[kind]

    return folder


def same(ours: list[DetectorOutput], theirs: list[DetectorOutput]) -> int:
    """Compare object by object, whatever the order among those of one score; return how many there were."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(b.scores, a.scores, atol=1e-4, rtol=0)
        first, second = match(a, b)
        last = float(a.scores.min()) + 1e-4 if len(a.scores) else 0.0  # of equals, either may have the last place
        for one, paired in ((a, first), (b, second)):
            assert all(one.scores[place] <= last for place in set(range(len(one.scores))) - set(paired))
        assert torch.equal(a.indices[first], b.indices[second])
        torch.testing.assert_close(b.boxes[second], a.boxes[first], atol=1e-2, rtol=0)
        assert (a.masks is None) == (b.masks is None)
        if a.masks is not None:
            assert b.masks.shape[1:] == (28, 28)
            torch.testing.assert_close(b.masks[second], a.masks[first], atol=1e-3, rtol=0)
    return sum(len(one.scores) for one in ours)


def pictures(batch: int, height: int, width: int) -> torch.Tensor:
    coarse = torch.randn(batch, 3, height // 16 + 1, width // 16 + 1)
    return nn.functional.interpolate(coarse, (height, width)) + 0.2 * torch.randn(batch, 3, height, width)


@pytest.mark.parametrize("kind", KINDS)
def test_all_images_at_once_give_what_the_model_gives_one_by_one(kind: str) -> None:
    model = model_of(kind)
    graph, found = DetectionGraph(model).eval(), 0
    for batch, height, width in SHAPES:
        images = pictures(batch, height, width)
        with torch.inference_mode():
            found += same(model(images), read_outputs("detector", graph(images)))
    assert found > 150


def test_boxes_compete_inside_their_group_and_row_only() -> None:
    boxes = random_boxes(60, 100, 100, least=40).view(2, 30, 4)
    scores = torch.rand(2, 3, 30)
    scores[0, 0, :10] = NOTHING
    kept = keep_apart(boxes, scores, 0.3)
    assert not kept[0, 0, :10].any()
    for group in range(2):
        for row in range(3):
            survivors = []  # greedily, by the definition
            for place in scores[group, row].argsort(descending=True).tolist():
                if scores[group, row, place] <= NOTHING:
                    continue
                overlaps = [overlap(boxes[group, place], boxes[group, other]) for other in survivors]
                survivors += [place] if max(overlaps, default=0) <= 0.3 else []
            assert kept[group, row].nonzero().flatten().tolist() == sorted(survivors)


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
    shared = float(sides.prod())
    return shared / (float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - shared)


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (6, 12), (25, 32)])
def test_averages_by_products_are_the_adaptive_ones(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 5, *size)
    wanted = [average(x, side) for side in (1, 2, 3, 6)]
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    for side, values in zip((1, 2, 3, 6), wanted, strict=True):
        torch.testing.assert_close(average(x, side), values)


def test_objects_are_paired_whatever_their_order_and_the_last_place_is_forgiven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boxes, scores = random_boxes(6, 90, 90), torch.tensor([0.9, 0.8, 0.7, 0.6, 0.4, 0.3])
    model = model_of("retinanet")
    ours = DetectorOutput(boxes, scores, torch.arange(6))
    order = torch.tensor([1, 0, 2, 3, 4])  # the last one, at the very end of the list, is missing
    theirs = DetectorOutput(boxes[order] + 0.003, scores[order] + 1e-5, torch.arange(6)[order])
    monkeypatch.setattr(Detector, "forward", lambda self, images: [ours] * len(images))

    def compared(found: DetectorOutput) -> Parity:
        return compare(model, lambda images: [found] * len(images), "x")

    parity = compared(theirs)
    assert (parity.failures, parity.unmatched) == ([], 0)
    assert parity.largest["boxes"] == pytest.approx(0.003, abs=1e-4)
    images = sum(one.shape[0] for one in parity.comparisons)
    assert parity.objects == 6 * images
    for worse in (
        theirs._replace(boxes=theirs.boxes + 0.1),
        theirs._replace(scores=theirs.scores - 0.01),
        theirs._replace(indices=theirs.indices + 1),
        DetectorOutput(*(part[1:] for part in (boxes, scores, torch.arange(6)))),
    ):
        assert "found by one of the two only" in compared(worse).failures[0]

    def broken(_: torch.Tensor) -> None:
        raise RuntimeError("no such operator\nand more")

    assert "cannot be computed: no such operator" in compare(model, broken, "x").failures[0]
    few = DetectorOutput(*(part[:0] for part in (boxes, scores, torch.arange(6))))
    assert compared(few).unmatched == 5 * images  # the sixth has the last place


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_objects_are_the_models_at_any_size_and_batch(kind: str, exported: Callable[[str], Path]) -> None:
    model, backend = model_of(kind), OnnxBackend(exported(kind) / "model.onnx", threads=1)
    found = 0
    for batch, height, width in SHAPES:
        images = pictures(batch, height, width)
        with torch.inference_mode():
            found += same(model(images), backend(images))
    assert found > 150


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_images_without_objects(kind: str, exported: Callable[[str], Path], tmp_path: Path) -> None:
    """Beside images with some, and alone."""
    import onnx

    from davit.inference.backends.onnx_header import NO_DIGEST, sealed

    model, proto = model_of(kind), onnx.load(exported(kind) / "model.onnx")
    images = pictures(3, 64, 96)
    with torch.inference_mode():
        best = sorted(float(one.scores.max()) for one in model(images))
    for cut in (sum(best[:2]) / 2, 1.0):
        object.__setattr__(model.config.head, "score_threshold", cut)
        changed = onnx.ModelProto()
        changed.CopyFrom(proto)
        _raise_threshold(changed, cut)
        for entry in changed.metadata_props:
            if entry.key == "davit_sha256":
                entry.value = NO_DIGEST
        (tmp_path / "model.onnx").write_bytes(sealed(changed.SerializeToString()))
        with torch.inference_mode():
            wanted = model(images)
        assert 0 in [len(one.scores) for one in wanted]
        same(wanted, OnnxBackend(tmp_path / "model.onnx")(images))


def _raise_threshold(model, cut: float) -> None:
    """Replace the score threshold, 0.05, wherever the graph holds it."""
    import onnx

    changed = 0
    for holder in [*model.graph.initializer, *(a.t for n in model.graph.node for a in n.attribute if a.HasField("t"))]:
        values = onnx.numpy_helper.to_array(holder)
        if values.dtype == np.float32 and values.size == 1 and np.isclose(values.item(), 0.05):
            holder.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, cut), holder.name))
            changed += 1
    assert changed


@pytest.mark.slow
def test_logits_of_pixels_are_the_models(exported: Callable[[str], Path]) -> None:
    model, backend = model_of("segmenter"), OnnxBackend(exported("segmenter") / "model.onnx", threads=1)
    for batch, height, width in SHAPES:
        images = pictures(batch, height, width)
        with torch.inference_mode():
            torch.testing.assert_close(backend(images), _Logits(model)(images), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "segmenter"])
def test_the_verbs_take_the_file_in_place_of_the_checkpoint(
    kind: str, exported: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: object) -> dict:
        capsys.readouterr()
        assert main([*map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    folder = exported(kind)
    data = masks(tmp_path) if kind == "segmenter" else coco(tmp_path)
    a, b = (
        said("evaluate", folder / name, "--data", data, "--workers", 0, "--batch-size", 2)
        for name in ("model.safetensors", "model.onnx")
    )
    assert a["count"] == 5
    flat = [{key: value for key, value in report.items() if isinstance(value, float)} for report in (a, b)]
    assert flat[0] == pytest.approx(flat[1], abs=1e-5)
    picture = next((data / ("val" if kind == "segmenter" else "val2017")).iterdir())
    a, b = (
        said("predict", picture, "--model", folder / name, "--save", tmp_path / name, "--threshold", 0.1)[0]
        for name in ("model.safetensors", "model.onnx")
    )
    assert a.keys() == b.keys()
    if kind != "segmenter":
        assert [one["label"] for one in a["objects"]] == [one["label"] for one in b["objects"]]
        assert len(a["objects"]) > 0
    assert (tmp_path / "model.onnx" / f"{picture.stem}.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_stands_for_itself_and_another_weight_is_a_difference(
    kind: str, exported: Callable[[str], Path]
) -> None:
    session = onnxruntime.InferenceSession(exported(kind) / "model.onnx")
    names = {output.name: output.shape for output in session.get_outputs()}
    assert names["boxes"] == ["objects", 4]
    assert names["counts"] == ["batch"]
    assert names.get("masks", ["objects", 28, 28]) == ["objects", 28, 28]
    values = dict(zip(names, session.run(None, {"images": pictures(2, 64, 64).numpy()}), strict=True))
    assert values["counts"].sum() == len(values["boxes"]) == len(values["scores"])
    backend, model = OnnxBackend(exported(kind) / "model.onnx"), model_of(kind)
    assert backend.config == model.config
    assert Predictor.load(exported(kind) / "model.onnx").backend.classes == CLASSES
    assert compare(model, backend, "model.onnx").failures == []
    with torch.no_grad():
        model.pyramid.outputs[1].weight *= 1.01
    assert compare(model, backend, "model.onnx").failures


def coco(root: Path) -> Path:
    """Digit scenes in COCO's layout."""
    scenes = Scenes("test", 5, "detection", size=96)
    truth = scenes.ground_truth()
    (root / "annotations").mkdir()
    (root / "val2017").mkdir()
    for index, image in enumerate(truth["images"]):
        image["file_name"] = f"{index}.png"
        scenes[index][0].save(root / "val2017" / f"{index}.png")
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(truth))
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(truth))
    (root / "train2017").mkdir()
    return root


def masks(root: Path) -> Path:
    """Digit scenes beside index masks; ten classes, for the background is ignored."""
    scenes = Scenes("test", 5, "segmentation", size=96)
    for folder in ("val", "val_masks", "train", "train_masks"):
        (root / folder).mkdir()
    for index in range(5):
        picture, classes = scenes[index]
        for part in ("train", "val"):
            picture.save(root / part / f"{index}.png")
            Image.fromarray(np.where(classes, classes - 1, 255).astype(np.uint8)).save(
                root / f"{part}_masks" / f"{index}.png"
            )
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root
