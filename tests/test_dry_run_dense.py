"""The dry run of detection and segmentation: memory against that of real steps, arithmetic against known figures."""

from dataclasses import replace

import pytest
import torch

from allocations import allocated
from davit.data.loader import collate
from davit.models.config import DaViTConfig
from davit.models.create import make_model
from davit.recipes import make_recipe
from davit.records import assign
from davit.structures import Batch
from davit.train import device_memory
from davit.train.build import build_preprocessing, whole_config
from davit.train.dry_run import report
from davit.train.footprint import Footprint, Moment, footprint
from davit.train.planned_step import plan_step
from davit.train.recipe import Recipe
from davit.train.sides import list_images, make_task, train_samples
from runs import tiny_dense_recipe

SMALL = DaViTConfig(widths=(32, 64, 96, 128), depths=(1, 1, 1, 1))
TASKS = ("digits.segmentation", "digits.detection", "digits.retinanet")


def recipe_of(name: str) -> Recipe:
    """Scenes at 128 pixels with a backbone and a head that are small, and maps that are not."""
    recipe = tiny_dense_recipe(name, runtime__device="cpu", data__batch_size="4", model__head__channels="32")
    return replace(recipe, model=replace(recipe.model, backbone=SMALL))


@pytest.mark.parametrize("name", TASKS)
def test_memory_is_that_of_a_real_step(name: str) -> None:
    recipe = recipe_of(name)
    images = list_images(recipe)
    task = make_task(recipe, images)
    config = whole_config(recipe, SMALL, 10 if name != "digits.segmentation" else 11)
    samples = train_samples(recipe, build_preprocessing(recipe.data, None), images)
    batch: Batch = collate([samples[0, index] for index in range(4)])
    model = make_model(config).train()

    def step() -> None:
        torch.stack(list(task.losses(model, batch).values())).sum().backward()

    planned = plan_step(recipe, config)
    shape = (4, 3, *planned.padded)
    assert tuple(batch.images.shape) == shape
    counted = footprint(lambda: make_model(config), planned.loss, shape, precision=torch.float32, gpu=False)
    real = allocated(step) + batch.images.nbytes
    assert counted.peak.total == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize("name", TASKS)
def test_a_recipe_of_scenes_is_planned_whole(name: str) -> None:
    recipe = recipe_of(name)
    plan = report(recipe, world=2, tflops=1.0)
    model = make_model(whole_config(recipe, SMALL, 11 if "segmentation" in name else 10))
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert plan.parameters == weights
    assert plan.memory.parameters == plan.memory.gradients == 4 * weights
    assert (plan.images, plan.micro_batch, plan.steps) == (30, 2, 15)
    assert plan.checkpointed.total < plan.plain.total
    assert plan.communication == 4 * weights
    assert ("leaves out" in " ".join(plan.notes)) == ("segmentation" not in name)
    assert plan.to_json()["memory"]["total"] == plan.memory.total


@pytest.fixture
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that ask for other things than memory."""
    counted = Footprint(kept=Moment(), peak=Moment(), beside_gradients=Moment(), beside_weights=Moment())
    monkeypatch.setattr(device_memory, "footprint", lambda *_, **__: counted)


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize(
    ("name", "images", "giga"),
    [
        ("ade20k.upernet", 20_210, 235),  # a quarter of the paper's 940 at 512x2048
        ("coco.retinanet_1x", 117_266, 244 * 1333 / 1280),  # the paper's at 800x1280
        ("coco.mask_rcnn_1x", 117_266, 263 * 1333 / 1280),  # with 1,000 regions and 100 masks, here 512 and 128
    ],
)
def test_arithmetic_is_what_the_paper_says(name: str, images: int, giga: float) -> None:
    recipe = assign(make_recipe(name), "model.init", "")
    plan = report(recipe)
    assert plan.images == images
    assert plan.flops / 6e9 == pytest.approx(giga, rel=0.05)
    assert "are assumed" in plan.notes[0]
    again = report(assign(recipe, "model.backbone.gradient_checkpointing", "true"))
    assert 0 < again.flops - plan.flops < plan.flops / 3  # the backbone is computed once more, the head is not


@pytest.mark.usefixtures("uncounted")
def test_frozen_stages_are_told() -> None:
    plan = report(tiny_dense_recipe("digits.detection", optimizer__frozen_stages="1"))
    assert any("frozen" in note for note in plan.notes)


def test_image_text_memory_is_that_of_a_real_step() -> None:
    recipe = tiny_dense_recipe("digits.contrastive", runtime__device="cpu", data__batch_size="16")
    recipe = replace(recipe, model=replace(recipe.model, backbone=SMALL))
    images = list_images(recipe)
    task = make_task(recipe, images)
    config = whole_config(recipe, SMALL, 0)
    samples = train_samples(recipe, build_preprocessing(recipe.data, None), images)
    batch: Batch = collate([samples[0, index] for index in range(16)])
    model = make_model(config).train()

    def step() -> None:
        torch.stack(list(task.losses(model, batch).values())).sum().backward()

    shape = tuple(batch.images.shape)
    counted = footprint(
        lambda: make_model(config), plan_step(recipe, config).loss, shape, precision=torch.float32, gpu=False
    )
    assert counted.peak.total == pytest.approx(allocated(step) + batch.images.nbytes, rel=0.1)


def test_the_giants_pre_training_is_planned() -> None:
    """Weights of both towers, the whole batch's vectors on each device, and which devices hold it."""
    recipe = make_recipe("image_text.unicl", "davit_giant")
    recipe = assign(recipe, "data.batch_size", "16384")
    plan = report(recipe, world=512)
    assert plan.parameters == pytest.approx(1.437e9 + 123.65e6, rel=0.01)  # DaViT-Giant, CLIP's text tower of width 768
    assert plan.memory.pairs == 4 * 4 * (16384 - 32) * (2 * 768 + 32)
    assert "80 GB" in plan.memory.fits()
    assert plan.steps == -(-2 * 1_500_000_000 // 16384)
    alone = report(recipe, world=1)
    assert alone.memory.pairs == 0
    assert "80 GB" not in alone.memory.fits()
