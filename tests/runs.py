"""Small training runs that tests share."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from davit.data.detection_transforms import DetectionAugmentation
from davit.data.segmentation_transforms import SegmentationAugmentation
from davit.models.clip_config import TextConfig
from davit.models.config import DaViTConfig
from davit.recipes import make_recipe
from davit.records import assign
from davit.train.build import build_model
from davit.train.distributed import World
from davit.train.optimizer import OptimizerConfig
from davit.train.recipe import Recipe
from davit.train.run import make_plan
from davit.train.sides import first_values, list_images, make_task
from davit.train.trainer import Trainer

TINY = DaViTConfig(in_channels=1, widths=(32, 32, 32, 32), depths=(1, 1, 1, 1), window=3, drop_path=0.1)


def tiny_recipe(**settings: str) -> Recipe:
    """Digits with a very small model and AdamW: 11 steps an epoch, on one thread, for a second one only waits."""
    torch.set_num_threads(1)
    recipe = make_recipe("digits")
    recipe = replace(recipe, model=replace(recipe.model, backbone=TINY), optimizer=OptimizerConfig(learning_rate=4e-3))
    for path, text in {"data.batch_size": "128", "schedule.epochs": "2", "schedule.warmup_epochs": "1"}.items():
        recipe = assign(recipe, path, text)
    for path, text in settings.items():
        recipe = assign(recipe, path.replace("__", "."), text)
    return recipe


def colour_folder(root: Path, names: tuple[str, ...] = ("blue", "green", "red"), images: int = 8) -> Path:
    """Pictures of noise in three colours, learnable by anyone."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(images):
            pixels = rng.integers(0, 120, (20, 24, 3), dtype=np.uint8)
            pixels[..., 2 - index % 3] += 130
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def states_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def stop_after(trainer: Trainer, steps: int) -> None:
    """Send this process SIGTERM in the middle of a step."""
    gradients = trainer.stepper.gradients

    def counted(batches, step, rate, **rest):
        if step == steps - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return gradients(batches, step, rate, **rest)

    trainer.stepper.gradients = counted


def make_trainer(recipe: Recipe, folder: Path, world: World | None = None) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    images = list_images(recipe)
    model = build_model(recipe, images.train.classes, world, first=first_values(recipe, images))
    task = make_task(recipe, images)
    return Trainer(recipe, model, task, make_plan(recipe, model, task, images, world), folder, world)


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of all that a step changes: weights, averages, moments."""
    return {name: tensor.clone() for name, tensor in trainer.stepper.tensors().items()}


def tiny_dense_recipe(name: str, **settings: str) -> Recipe:
    """A recipe of digit scenes with a very small model, on thirty scenes of 128 pixels."""
    torch.set_num_threads(1)
    recipe = make_recipe(name)
    model, data = recipe.model, replace(recipe.data, scenes=30, batch_size=6, first_size=0)
    if isinstance(data.augmentation, DetectionAugmentation):
        augmentation = replace(data.augmentation, short_sides=(128,), longest=128, crop_short_sides=(128,))
        data = replace(data, image_size=128, longest=128, augmentation=augmentation)
    if isinstance(data.augmentation, SegmentationAugmentation):
        augmentation = replace(data.augmentation, short=128, longest=128, crop=128)
        data = replace(data, image_size=128, longest=128, augmentation=augmentation)
    small: dict[str, Any] = {"channels": 16, "hidden": 32}
    if name == "digits.segmentation":
        small = {"channels": 16, "auxiliary_channels": 8}
    if name == "digits.contrastive":
        small = {"embedding": 16, "text": TextConfig(context=24, width=16, heads=2, layers=1)}
    assert model.head is not None
    head = replace(model.head, **small)
    recipe = replace(
        recipe,
        model=replace(model, backbone=replace(TINY, in_channels=3, window=4), head=head),
        data=data,
        optimizer=replace(recipe.optimizer, matrix_precision="fp32"),  # the same on every processor
        schedule=replace(recipe.schedule, epochs=2),
    )
    for path, text in settings.items():
        recipe = assign(recipe, path.replace("__", "."), text)
    return recipe
