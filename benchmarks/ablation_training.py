"""One training of one model of `ablation.py`: the library's step, optimizer, schedule, averages, loss and metric."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablation_models import build, multiply_adds, shape
from davit.data.transforms import Augmentation
from davit.preprocessing import Preprocessing, as_mode
from davit.seeding import seed_everything
from davit.structures import Batch
from davit.tasks.classification import ClassificationConfig, ClassificationTask
from davit.train.build import build_images
from davit.train.distributed import World
from davit.train.optimizer import OptimizerConfig
from davit.train.recipe import DataRecipe, ModelRecipe, Recipe, RuntimeRecipe
from davit.train.schedule import ScheduleConfig, rate_at
from davit.train.step import Stepper

WEIGHT_STREAM, DATA_STREAM = 2, 3  # separate the randomness of first weights and of samples from that of steps
EVALUATED_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all models of a comparison share, and what tells one comparison from another."""

    optimizer: str
    rate: float
    matrix_rate: float
    steps: int
    batch_size: int
    image_size: int


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """A data set, decoded once.

    Attributes:
        name: of the folder.
        classes: class names.
        train: (N, 3, S + 2 m, S + 2 m) uint8, with the reflected border of m pixels that crops are shifted into.
        train_labels: (N,) int64.
        validation: (M, 3, S, S) uint8.
        validation_labels: (M,) int64.
    """

    name: str
    classes: tuple[str, ...]
    train: Tensor
    train_labels: Tensor
    validation: Tensor
    validation_labels: Tensor


def make_recipe(settings: Settings, root: str, seed: int) -> Recipe:
    """The recipe of every model: no drop path, mixing or erasing, for these runs are too short to learn by heart."""
    size = settings.image_size
    varied = Augmentation(crop_scale=(1.0, 1.0), shift_crop=size // 8, flip=0.5, rand_augment="", erasing=0.0)
    return Recipe(
        name="ablation",
        model=ModelRecipe(variant="", backbone=shape(size)),
        task=ClassificationConfig(label_smoothing=0.1, mix_probability=0.0),
        data=DataRecipe(
            source="folder", root=root, image_size=size, crop=1.0, batch_size=settings.batch_size, augmentation=varied
        ),
        optimizer=OptimizerConfig(
            kind=settings.optimizer, learning_rate=settings.rate, matrix_rate=settings.matrix_rate
        ),
        schedule=ScheduleConfig(
            epochs=1,
            steps=settings.steps,
            warmup_epochs=0,
            warmup_steps=max(1, settings.steps // 10),
            cooldown_epochs=0,
        ),
        runtime=RuntimeRecipe(seed=seed, device="cpu", precision="fp32", ema=0.98),
    )


def decode(recipe: Recipe) -> Pixels:
    """Decode and resize a folder of `train/` and `val/` class folders, once.

    Raises:
        ValueError: no such folder.
    """
    images = build_images(recipe.data, 0)
    preprocessing = Preprocessing.imagenet(recipe.data.image_size, crop=1.0)
    train, train_labels = _tensors(images.train, preprocessing)
    validation, validation_labels = _tensors(images.validation, preprocessing)
    border = augmentation_of(recipe).shift_crop
    return Pixels(
        name=Path(recipe.data.root).name,
        classes=tuple(images.train.classes),
        train=F.pad(train.float(), (border,) * 4, mode="reflect").to(torch.uint8),
        train_labels=train_labels,
        validation=validation,
        validation_labels=validation_labels,
    )


def augmentation_of(recipe: Recipe) -> Augmentation:
    """How the recipe varies training images."""
    return recipe.classification("an ablation")[1]


def _tensors(part: Any, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    pictures, labels = [], []
    for index in range(len(part)):
        image, label = part[index]
        pictures.append(torch.from_numpy(np.array(preprocessing.resize(as_mode(image, 3)))))
        labels.append(label)
    return torch.stack(pictures).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def vary(padded: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Shift and mirror pictures as `TrainTransform` would, from draws for the whole batch.

    One by one through Pillow and torchvision's crop, a picture of 32 pixels takes 0.4 to 0.6 ms, half as long as its
    share of a training step; from decoded pixels it takes a hundredth of that.

    Args:
        padded: (B, 3, S + 2 m, S + 2 m), with a border of m = `augmentation.shift_crop`.
        augmentation: of whose entries the shift and the flip are used.
        generator: to draw from.
    """
    border, count = augmentation.shift_crop, len(padded)
    size = padded.shape[-1] - 2 * border
    places = torch.randint(0, 2 * border + 1, (count, 2), generator=generator).tolist()
    mirrored = (torch.rand(count, generator=generator) < augmentation.flip).tolist()
    out = torch.empty(count, 3, size, size, dtype=padded.dtype)
    for row, (top, left) in enumerate(places):
        cut = padded[row, :, top : top + size, left : left + size]
        out[row] = cut.flip(-1) if mirrored[row] else cut
    return out


def normalise(pixels: Tensor) -> Tensor:
    """Turn (B, 3, S, S) uint8 into what models are given."""
    usual = Preprocessing.imagenet(pixels.shape[-1])
    mean, std = torch.tensor(usual.mean).view(3, 1, 1), torch.tensor(usual.std).view(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def order_of(count: int, samples: int, seed: int) -> Tensor:
    """Indices of `count` samples, epoch after epoch, the same for every model of a seed."""
    generator = torch.Generator().manual_seed(seed)
    epochs = -(-count // samples)
    return torch.cat([torch.randperm(samples, generator=generator) for _ in range(epochs)])[:count]


def train(name: str, pixels: Pixels, recipe: Recipe) -> dict[str, Any]:
    """Train one model from fresh weights and score its averaged weights on the validation images."""
    seed, steps, batch_size = recipe.runtime.seed, recipe.schedule.steps, recipe.data.batch_size
    seed_everything(seed, WEIGHT_STREAM)
    model = build(name, recipe.data.image_size, len(pixels.classes))
    task = ClassificationTask(recipe.classification("an ablation")[0], len(pixels.classes))
    stepper = Stepper(recipe, model, task, World(), batch_size, torch.float32)
    order = order_of(steps * batch_size, len(pixels.train), seed).view(steps, batch_size)
    generator = torch.Generator().manual_seed(seed + (DATA_STREAM << 32))
    losses, started, worked = [], time.perf_counter(), time.process_time()
    for step, chosen in enumerate(order):
        varied = vary(pixels.train[chosen], augmentation_of(recipe), generator)
        batch = Batch(images=normalise(varied), targets=pixels.train_labels[chosen])
        rate = recipe.optimizer.learning_rate * rate_at(recipe.schedule, step, 1.0)
        loss, finite = stepper.gradients(iter([batch]), step, rate, frozen=False)
        if finite:
            stepper.update()
        else:
            stepper.skip()
        losses.append(loss)
    spent, used = time.perf_counter() - started, time.process_time() - worked
    assert stepper.average is not None
    with stepper.average.in_place():
        scores = evaluate(model, task, pixels)
    last = losses[-max(1, steps // 10) :]
    return {
        **scores,
        "train_loss": sum(last) / len(last),
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": multiply_adds(model, recipe.data.image_size),
        "seconds": round(spent, 2),
        "cpu_seconds": round(used, 2),
    }


@torch.inference_mode()
def evaluate(model: nn.Module, task: ClassificationTask, pixels: Pixels) -> dict[str, float]:
    """Top-1 and mean cross-entropy on the validation images."""
    model.eval()
    metric = task.metric()
    for start in range(0, len(pixels.validation), EVALUATED_AT_ONCE):
        rows = slice(start, start + EVALUATED_AT_ONCE)
        metric.update(model(normalise(pixels.validation[rows])), pixels.validation_labels[rows])
    scores = metric.compute()
    return {"top1": scores["top1"], "validation_loss": scores["validation_loss"]}
