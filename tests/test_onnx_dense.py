"""ONNX files of detectors and segmenters: every object, mask and logit of the model, at any size and batch."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import davit
from davit.cli import main
from davit.data.scenes import Scenes
from davit.inference.backends.onnx_runtime import OnnxBackend
from davit.inference.backends.tracing import Logits
from davit.inference.parity import compare
from davit.inference.predictor import Predictor
from spoken_models import CLASSES, KINDS, SHAPES, model_of, pictures, same


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
            torch.testing.assert_close(backend(images), Logits(model)(images), atol=1e-4, rtol=0)


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
