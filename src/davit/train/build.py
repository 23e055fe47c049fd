"""From a recipe to what it names: images and model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from davit.data.digits import Digits
from davit.data.folder import split_folder
from davit.data.images import find_images
from davit.data.loader import Part
from davit.models.classifier import Classifier
from davit.models.clip_config import ImageTextConfig, ImageTextHead
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.create import Model, WholeConfig, make_model
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.models.detector_config import DetectorConfig, DetectorHead
from davit.models.segmenter_config import SegmenterConfig, UPerNetHead
from davit.preprocessing import Preprocessing
from davit.train.device import pick_precision
from davit.train.distributed import World
from davit.train.initialise import coverage, initialise, values_of
from davit.train.parallel import shard
from davit.train.recipe import DataRecipe, Recipe
from davit.weights.load import load
from davit.weights.text_tower import read_text_tower


@dataclass(frozen=True)
class Images:
    """The two sides of a data set, whose images come with what the task needs, and what was noted of them."""

    train: Any
    validation: Any
    notes: tuple[str, ...] = ()


def build_images(data: DataRecipe, seed: int) -> Images:
    """List the images of a recipe: class folders or shards.

    Raises:
        ValueError: no such folder, no classes, or a validation class that training does not know.
        ShardError: shards that cannot be read, or are not what their index says.
    """
    if data.source == "digits":
        return Images(Digits("train"), Digits("test"))
    if not data.root:
        raise ValueError(
            "say where the images are: data.root=DIR, with class folders, train/ and val/, or shards; or a URL"
        )
    source = find_images(data.root)
    if "val" in source.parts:
        if "train" not in source.parts:
            raise ValueError(
                f"{data.root} holds no images to train with: it has {', '.join(source.parts)} and no train"
            )
        train = source.open("train")
        validation = source.open("val", train.classes, allow_missing=True)
        missing = (f"no validation images of {', '.join(validation.missing)}",) if validation.missing else ()
        return Images(train, validation, missing)
    folder = source.open(source.validation)
    chosen, held_out = split_folder(folder, data.validation_share, seed)
    if not held_out:
        raise ValueError(f"{data.root} holds too few images to keep some for validation: add images, or a val/ folder")
    note = f"{data.root} has no val/: {len(held_out)} of {len(folder)} images are held out for validation"
    return Images(Part(folder, chosen), Part(folder, held_out), (note,))


def build_model(
    recipe: Recipe,
    classes: tuple[str, ...],
    world: World | None = None,
    notes: list[str] | None = None,
    first: Mapping[str, Tensor] | None = None,
) -> Model:
    """Build the model of a recipe, with fresh weights or from `model.init`; the seed decides all randomness.

    With `world` it is sharded where the recipe says so, and fresh weights are drawn without any process holding them
    all. What the initial weights cover is added to `notes`. `first` has the values of parameters that are not drawn,
    where the initial weights do not give them.

    Raises:
        ValueError: the initial weights cannot be read, or take images of other channels.
    """
    start = load(recipe.model.init) if recipe.model.init else None
    given = None
    if start is not None:
        given = start.config if isinstance(start, (DaViT, DenseBackbone)) else start.config.backbone
    config = architecture(recipe, given)
    with torch.device("meta"):
        model = make_model(whole_config(recipe, config, len(classes)))
    model.classes = classes
    model.preprocessing = build_preprocessing(recipe.data, start.preprocessing if start is not None else None)
    if world is not None and recipe.runtime.parallel == "fsdp":
        shard(model, world, pick_precision(recipe.runtime.precision, world.device))
    model.to_empty(device=world.device if world is not None else "cpu")
    known = values_of(start, model) if start is not None else {}
    if notes is not None and recipe.model.init:
        notes.append(coverage(recipe.model.init, known, model))
    known |= _text_tower(recipe, notes)
    classifiers = isinstance(start, Classifier) and isinstance(model, Classifier)
    initialise(model, recipe.runtime.seed, {**(first or {}), **known}, start if classifiers else None)
    return model


def _text_tower(recipe: Recipe, notes: list[str] | None) -> dict[str, Tensor]:
    """Values of the text tower that `model.text_init` gives.

    Raises:
        ValueError: no image-text model, or a text tower that does not fit.
    """
    source, head = recipe.model.text_init, recipe.model.head
    if not source:
        return {}
    if not isinstance(head, ImageTextHead):
        raise ValueError(f"model.text_init is for image-text models, and {recipe.name} trains none")
    tensors = read_text_tower(source, head)
    if notes is not None:
        notes.append(f"{source} gives all {len(tensors)} tensors of the text tower")
    return {f"text.{name}": tensor for name, tensor in tensors.items()}


def whole_config(recipe: Recipe, backbone: DaViTConfig, num_classes: int) -> WholeConfig:
    """The model of a recipe on this backbone."""
    match recipe.model.head:
        case DetectorHead() as head:
            return DetectorConfig(backbone=backbone, head=head, num_classes=num_classes)
        case UPerNetHead() as head:
            return SegmenterConfig(backbone=backbone, head=head, num_classes=num_classes)
        case ImageTextHead() as head:
            return ImageTextConfig(backbone=backbone, head=head)
        case None:
            return ClassifierConfig(backbone=backbone, num_classes=num_classes)


def architecture(recipe: Recipe, given: DaViTConfig | None) -> DaViTConfig:
    """The backbone that a recipe trains: its own, or that of the initial weights with what a recipe may change of it.

    Raises:
        ValueError: it takes images of other channels than the recipe's data.
    """
    config = own = recipe.model.backbone
    if given is not None:
        config = replace(given, drop_path=own.drop_path, gradient_checkpointing=own.gradient_checkpointing)
        if recipe.model.window:  # no weight depends on it
            config = replace(config, window=recipe.model.window)
    if config.in_channels != recipe.data.channels:
        raise ValueError(
            f"the model takes {config.in_channels} channels, data.channels is {recipe.data.channels}: "
            f"set data.channels={config.in_channels}"
        )
    return config


def build_preprocessing(data: DataRecipe, known: Preprocessing | None) -> Preprocessing:
    """Size and crop of the recipe; mean and deviation of the initial weights, where they say so."""
    usual = Preprocessing.imagenet(data.image_size, data.channels)
    mean, std = (known.mean, known.std) if known else (usual.mean, usual.std)
    if not known and data.source in ("digits", "scenes"):
        mean, std = (0.5,) * data.channels, (0.5,) * data.channels
    if data.longest:
        size, fit = (data.image_size, data.longest), "within"
    else:
        size, fit = (data.image_size, data.image_size), "crop"
    return Preprocessing(size=size, crop=data.crop, fit=fit, interpolation=data.interpolation, mean=mean, std=std)
