"""Detection and segmentation run by the same trainer: exact resume, bad samples, skipped steps, reports, verbs."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import davit
from davit.data.scenes import Scenes
from davit.decoding import ImageError
from davit.records import assign
from davit.structures import Batch, Detections, Segmentation
from davit.train.checkpoint import latest_point
from davit.train.run import run
from davit.train.shrink import shrunk
from davit.train.sides import list_images
from davit.train.stop import TrainingStoppedError
from davit.weights.save import save
from runs import make_trainer, states_equal, stop_after, tiny_dense_recipe, weights_of

NAMES = ("digits.detection", "digits.retinanet", "digits.segmentation", "digits.contrastive")
SCORES = {"digits.detection": "mask_ap", "digits.retinanet": "box_ap", "digits.segmentation": "miou"}
SCORES |= {"digits.contrastive": "image_to_text_r5"}


@pytest.mark.parametrize("steps", [3, 7])
@pytest.mark.parametrize("name", NAMES)
def test_resume_is_exact(tmp_path: Path, name: str, steps: int) -> None:
    recipe = tiny_dense_recipe(name, runtime__accumulate="2" if steps == 7 and name != "digits.contrastive" else "1")
    whole = make_trainer(recipe, tmp_path / "whole")
    history = whole.run()
    first = make_trainer(recipe, tmp_path / "parts")
    stop_after(first, steps)
    with pytest.raises(TrainingStoppedError, match=f"step {steps} of 10"):
        first.run()
    second = make_trainer(recipe, tmp_path / "parts")
    second.resume(latest_point(tmp_path / "parts"))
    resumed = second.run()
    assert states_equal(weights_of(whole), weights_of(second))
    assert [r.get("loss") for r in resumed] == [r.get("loss") for r in history]
    key = SCORES[name]
    assert [r[key] for r in resumed if key in r] == [r[key] for r in history if key in r] != []


def test_objects_shrink_with_their_image() -> None:
    scenes = Scenes("train", 3, "detection", size=96)
    pictures, targets = zip(*(scenes[i] for i in range(3)), strict=True)
    images = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() for picture in pictures])
    small = shrunk(Batch(images=images, targets=targets, sizes=((96, 96), (96, 80), (60, 96))), 0.5)
    assert small.images.shape[-2:] == (48, 48)
    assert small.sizes == ((48, 48), (48, 40), (30, 48))
    assert float(small.images.mean()) == pytest.approx(float(images.mean()), rel=1e-2)
    for objects, before in zip(small.targets, targets, strict=True):
        torch.testing.assert_close(objects.boxes, before.boxes / 2)
        assert objects.labels.equal(before.labels)
        assert objects.masks.shape[1:] == (48, 48)
        for mask, box in zip(objects.masks, objects.boxes, strict=True):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            edges = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (edges - box).abs().max() <= 1.5
    unshrunk = Batch(images=images, targets=targets)
    assert shrunk(unshrunk, 1.0) is unshrunk


@pytest.mark.parametrize("name", ["digits.segmentation", "digits.contrastive", "digits.detection"])
def test_first_steps_take_smaller_images_and_labels_as_they_are(tmp_path: Path, name: str) -> None:
    recipe = tiny_dense_recipe(name, data__first_size="48", data__first_share="0.5", schedule__epochs="1")
    trainer = make_trainer(recipe, tmp_path / "run")
    losses, seen, labels = trainer.stepper.task.losses, [], set()

    def watched(model, batch):
        seen.append((batch.images.shape[-1], float(batch.images.std())))
        labels.add(batch.targets.shape[1:] if isinstance(batch.targets, torch.Tensor) else None)
        return losses(model, batch)

    trainer.stepper.task.losses = watched
    history = trainer.run()
    side = recipe.data.image_size
    assert [size for size, _ in seen] == [48] * 3 + [side] * 2
    assert all(spread > 0.1 for _, spread in seen)
    assert labels == {{"digits.segmentation": (side, side), "digits.contrastive": (2,)}.get(name)}
    assert all(math.isfinite(record["loss"]) for record in history if "loss" in record)


def test_first_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="first_size must lie in 0 to image_size"):
        tiny_dense_recipe("digits.segmentation", data__first_size="4000", data__first_share="0.5")
    with pytest.raises(ValueError, match=r"first_share in \[0, 1\]"):
        tiny_dense_recipe("digits.segmentation", data__first_size="32", data__first_share="1.5")
    captioned = tiny_dense_recipe("digits.contrastive", data__first_size="32", data__first_share="0.5")
    with pytest.raises(ValueError, match="is for one epoch"):
        list_images(captioned)
    with pytest.raises(ValueError, match="first_size must lie in 32 to 64, got 16"):
        list_images(assign(assign(captioned, "schedule.epochs", "1"), "data.first_size", "16"))


@pytest.mark.parametrize("steps", ["0", "3"])
def test_small_captioned_scenes_are_those_of_the_steps_with_small_images(tmp_path: Path, steps: str) -> None:
    recipe = tiny_dense_recipe("digits.contrastive", schedule__epochs="1", schedule__steps=steps)
    recipe = replace(recipe, data=replace(recipe.data, scenes=48, first_size=32, first_share=0.3))
    trainer = make_trainer(recipe, tmp_path / "run")
    train, losses, seen = list_images(recipe).train, trainer.stepper.task.losses, []

    def watched(model, batch):
        seen.append((batch.images.shape[-1], {train.images[index][0].size[0] for index in batch.ids}))
        return losses(model, batch)

    trainer.stepper.task.losses = watched
    trainer.run()
    side = recipe.data.image_size
    small = 3 if steps == "0" else 1  # 0.3 of 8 steps, rounded up, or of 3
    assert seen == [(32, {32})] * small + [(side, {side})] * (trainer.total - small)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path, name: str) -> None:
    """Neither weights, moments and averages nor the running statistics of batch norms."""
    trainer = make_trainer(tiny_dense_recipe(name, schedule__epochs="1"), tmp_path / "run")
    stepper, losses = trainer.stepper, trainer.stepper.task.losses
    gradients, skip, before, after = stepper.gradients, stepper.skip, {}, {}

    def poisoned(model, batch):
        batch.images[0, 0, 0, 0] = math.nan if len(before) == 3 else batch.images[0, 0, 0, 0]
        return losses(model, batch)

    def counted(batches, step, rate, **rest):
        before[step] = weights_of(trainer)
        return gradients(batches, step, rate, **rest)

    def skipped():
        skip()
        after[max(before)] = weights_of(trainer)

    stepper.task.losses, stepper.gradients, stepper.skip = poisoned, counted, skipped
    trainer.run()
    assert trainer.progress["skipped"] == 1
    assert list(after) == [2]
    assert states_equal(before[2], after[2])


@pytest.mark.parametrize("name", ["digits.detection", "digits.segmentation"])
def test_an_unreadable_picture_is_replaced_in_training_and_ends_an_evaluation(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, bad = Scenes.__getitem__, [("train", 4)]

    def faulty(scenes, index):
        if (scenes.split, index) in bad:
            raise ImageError(f"scene {index}: is empty")
        return read(scenes, index)

    monkeypatch.setattr(Scenes, "__getitem__", faulty)
    result = run(tiny_dense_recipe(name), tmp_path / "run")
    assert result.metrics["unreadable_samples"] == 2
    assert result.metrics["replaced_files"] == ["scene 4: is empty"]
    bad[0] = ("test", 1)
    with pytest.raises(ImageError, match="scene 1"):
        make_trainer(tiny_dense_recipe(name), tmp_path / "other").evaluate()


@pytest.mark.parametrize("name", NAMES)
def test_a_run_leaves_a_model_that_loads_and_predicts(tmp_path: Path, name: str) -> None:
    from davit.explain.run_report import write_run_report

    result = run(tiny_dense_recipe(name), tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 <= metrics[SCORES[name]] <= 1
    assert metrics["count"] == 3
    assert metrics["parameters"] == sum(p.numel() for p in result.model.parameters())
    model = davit.load(tmp_path / "run" / "model.safetensors")
    assert states_equal(model.state_dict(), result.model.state_dict())
    if name == "digits.contrastive":
        page = write_run_report(result).read_text()
        assert "From a picture to captions" in page
        assert "&#10003;" in page
        caption = result.images.validation.caption(0)
        assert f'alt="Grad-CAM of {caption}"' in page
        with pytest.raises(ValueError, match="embed_images"):
            davit.Predictor(model)
        return
    assert model.classes[-1] == "9"
    pictures = [Scenes("test", 3, "detection", size=size)[0][0] for size in (128, 96)]
    together = davit.Predictor(model)(pictures)
    alone = [davit.Predictor(model)(picture)[0] for picture in pictures]
    for one, other, picture in zip(together, alone, pictures, strict=True):
        if name == "digits.segmentation":
            assert isinstance(one, Segmentation)
            assert one.classes.shape == picture.size[::-1]
            assert torch.equal(one.classes, other.classes)
        else:
            assert isinstance(one, Detections)
            assert one.size == picture.size[::-1]
            torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-4)
    page = write_run_report(result).read_text()
    assert page.count('alt="Found"') == 3
    assert "Window attention" in page
    assert "Attention rollout" in page
    if name == "digits.segmentation":
        assert 'alt="Grad-CAM of ' in page


def test_a_detector_starts_from_a_classifier_and_keeps_frozen_stages(tmp_path: Path, capsys) -> None:
    from davit.models.classifier import Classifier
    from davit.models.config import ClassifierConfig

    recipe = tiny_dense_recipe("digits.detection")
    given = Classifier(ClassifierConfig(backbone=recipe.model.backbone, num_classes=5))
    davit.save(given, tmp_path / "given.safetensors")
    recipe = tiny_dense_recipe(
        "digits.detection",
        model__init=str(tmp_path / "given.safetensors"),
        optimizer__frozen_stages="2",
        schedule__epochs="1",
    )
    result = run(recipe, tmp_path / "run")
    tensors = len(given.backbone.state_dict())
    assert f"gives {tensors} of {tensors} tensors of the backbone and 0 others; fresh values: norms, pyramid, head" in (
        capsys.readouterr().err
    )
    theirs, ours = given.backbone.state_dict(), result.model.backbone.state_dict()
    same = {name: torch.equal(theirs[name], ours[name]) for name in theirs}
    assert all(same[name] for name in same if name.startswith(("stages.0.", "stages.1.")))
    assert not any(same[name] for name in same if name.startswith("stages.3.") and name.endswith("fc1.weight"))


def test_a_fresh_segmenter_believes_in_the_classes_by_their_shares_and_a_trained_one_in_its_own(tmp_path: Path) -> None:
    recipe = tiny_dense_recipe("digits.segmentation", task__prior_samples="30", data__scenes="30")
    fresh = make_trainer(recipe, tmp_path / "fresh").model
    data = recipe.data
    shown = {"fewest": data.fewest_digits, "most": data.most_digits, "bend": data.bend, "stroke": data.stroke}
    scenes = Scenes("train", 30, "segmentation", sparse=data.sparse_share, **shown)
    masks = np.stack([mask for _, mask in scenes])
    for classifier in (fresh.head.classifier, fresh.auxiliary.classifier):
        shares = classifier.bias.softmax(0)
        for index, share in enumerate(shares.tolist()):
            assert share == pytest.approx((masks == index).mean(), rel=1e-4)
    with torch.no_grad():
        fresh.head.classifier.bias.fill_(7.0)
    save(fresh, tmp_path / "model.safetensors")
    again = make_trainer(assign(recipe, "model.init", str(tmp_path / "model.safetensors")), tmp_path / "again").model
    assert again.head.classifier.bias.tolist() == [7.0] * 11
    equal = make_trainer(assign(recipe, "task.prior_samples", "0"), tmp_path / "equal").model
    assert not equal.head.classifier.bias.any()


def test_detections_go_to_coco_and_supervision() -> None:
    masks = torch.zeros(2, 6, 8, dtype=torch.bool)
    masks[0, 1:4, 2:7] = True
    found = Detections(
        boxes=torch.tensor([[2.0, 1.0, 7.0, 4.0], [0.0, 0.0, 1.0, 1.0]]),
        scores=torch.tensor([0.9, 0.2]),
        indices=torch.tensor([1, 0]),
        labels=("dog", "cat"),
        size=(6, 8),
        masks=masks,
        source="a.jpg",
    )
    from pycocotools import mask as oracle

    first, second = found.to_coco(7, category_ids=(11, 22))
    assert (first["image_id"], first["category_id"], first["bbox"]) == (7, 22, [2.0, 1.0, 5.0, 3.0])
    assert second["category_id"] == 11
    assert np.array_equal(oracle.decode(first["segmentation"]), masks[0].numpy())
    assert json.loads(json.dumps(found.to_json()))["objects"][0]["label"] == "dog"
    assert found.above(0.5).labels == ("dog",)
    others = found.to_supervision()
    assert others.xyxy.tolist() == found.boxes.tolist()
    assert others.data["class_name"].tolist() == ["dog", "cat"]
    assert np.array_equal(others.mask, masks.numpy())


def test_a_segmentation_goes_to_png(tmp_path: Path) -> None:
    from PIL import Image

    classes = torch.tensor([[0, 0, 2], [2, 2, 2]], dtype=torch.uint8)
    found = Segmentation(classes=classes, names=("sky", "road", "car"), source="a.jpg")
    found.to_png(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), classes.numpy())
    assert len({tuple(image.convert("RGB").getpixel((x, 0))) for x in range(3)}) == 2
    assert found.shares() == {"car": pytest.approx(4 / 6), "sky": pytest.approx(2 / 6)}


def test_the_loss_of_pixels_is_mmsegs() -> None:
    """A mean over all pixels; ignored ones add nothing, but count; weights as PyTorch's, not divided out again."""
    from davit.tasks.segmentation import SegmentationConfig, SegmentationTask, pixel_loss

    logits, classes = torch.randn(2, 3, 5, 7), torch.randint(3, (2, 20, 28))
    classes[0, :6] = 255
    large = torch.nn.functional.interpolate(logits.double(), (20, 28), mode="bilinear").log_softmax(1)
    for weights in ((), (0.2, 1.0, 3.0)):
        table = torch.tensor([*(weights or (1.0, 1.0, 1.0)), *([0.0] * 253)], dtype=torch.float64)
        picked = -large.gather(1, classes.clamp(max=2)[:, None])[:, 0] * table[classes]
        assert float(pixel_loss(logits, classes, weights)) == pytest.approx(float(picked.mean()), rel=1e-5)
    with pytest.raises(ValueError, match="2 weights for 3 classes"):
        SegmentationTask(SegmentationConfig(class_weights=(1.0, 1.0)), ("a", "b", "c"))
