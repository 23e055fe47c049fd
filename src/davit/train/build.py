"""From a recipe to what it names: images, model, task."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from davit.data.digits import Digits
from davit.data.folder import ClassFolder, split_folder, validation_root
from davit.data.loader import ClassifiedImages, Part
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.preprocessing import Preprocessing
from davit.seeding import seed_everything
from davit.train.recipe import DataRecipe, Recipe
from davit.weights.load import load

INIT_STREAM = 2


@dataclass(frozen=True)
class Images:
    """The two sides of a data set, and what was noted while they were listed."""

    train: ClassifiedImages
    validation: ClassifiedImages
    notes: tuple[str, ...] = ()


def build_images(data: DataRecipe, seed: int) -> Images:
    """List the images of a recipe.

    Raises:
        ValueError: no such folder, no classes, or a validation class that training does not know.
    """
    if data.source == "digits":
        return Images(Digits("train"), Digits("test"))
    if not data.root:
        raise ValueError("say where the images are: data.root=DIR, a folder of class folders or of train/ and val/")
    root = Path(data.root)
    if validation_root(root) != root:
        train = ClassFolder(root / "train")
        validation = ClassFolder(root / "val", train.classes, allow_missing=True)
        missing = (f"no validation images of {', '.join(validation.missing)}",) if validation.missing else ()
        return Images(train, validation, missing)
    folder = ClassFolder(root)
    chosen, held_out = split_folder(folder, data.validation_share, seed)
    if not held_out:
        raise ValueError(f"{root} holds too few images to keep some for validation: add images, or a val/ folder")
    note = f"{root} has no val/: {len(held_out)} of {len(folder)} images are held out for validation"
    return Images(Part(folder, chosen), Part(folder, held_out), (note,))


def build_model(recipe: Recipe, classes: tuple[str, ...]) -> Classifier:
    """Build the classifier of a recipe, with fresh weights or from `model.init`; the seed decides all randomness.

    Raises:
        ValueError: the initial weights cannot be read, or take images of other channels.
    """
    seed_everything(recipe.runtime.seed, INIT_STREAM)
    start = load(recipe.model.init) if recipe.model.init else None
    config = recipe.model.backbone
    if start is not None:
        given = start.config.backbone if isinstance(start, Classifier) else start.config
        config = replace(given, drop_path=config.drop_path, gradient_checkpointing=config.gradient_checkpointing)
    if config.in_channels != recipe.data.channels:
        raise ValueError(
            f"the model takes {config.in_channels} channels, data.channels is {recipe.data.channels}: "
            f"set data.channels={config.in_channels}"
        )
    model = Classifier(ClassifierConfig(backbone=config, num_classes=len(classes)))
    model.classes = classes
    known = start.preprocessing if start is not None else None
    model.preprocessing = build_preprocessing(recipe.data, known)
    if start is not None:
        transfer(start, model)
    return model


def build_preprocessing(data: DataRecipe, known: Preprocessing | None) -> Preprocessing:
    """Size and crop of the recipe; mean and deviation of the initial weights, where they say so."""
    size = (data.image_size, data.image_size)
    usual = Preprocessing.imagenet(data.image_size, data.channels)
    mean, std = (known.mean, known.std) if known else (usual.mean, usual.std)
    if not known and data.source == "digits":
        mean, std = (0.5,), (0.5,)
    return Preprocessing(size=size, crop=data.crop, interpolation=data.interpolation, mean=mean, std=std)


def transfer(start: Classifier | DaViT | DenseBackbone, model: Classifier) -> int:
    """Copy backbone, norm and the head's rows of classes of the same name; return how many rows that were."""
    backbone = start if isinstance(start, DaViT) else start.backbone
    model.backbone.load_state_dict(backbone.state_dict())
    if not isinstance(start, Classifier):
        return 0
    model.norm.load_state_dict(start.norm.state_dict())
    rows = {name: row for row, name in enumerate(start.classes)}
    shared = [(row, rows[name]) for row, name in enumerate(model.classes) if name in rows]
    with torch.no_grad():
        for ours, theirs in shared:
            model.head.weight[ours] = start.head.weight[theirs]
            model.head.bias[ours] = start.head.bias[theirs]
    return len(shared)
