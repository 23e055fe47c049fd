"""What a task brings to a run: its images, how training varies them, its loss, and what it is scored on."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from davit.data.caption_files import caption_roots, find_captions, split_captions
from davit.data.caption_shards import CaptionShards, caption_parts
from davit.data.captions import MOST_TOLD, CaptionedScenes, Pairs
from davit.data.coco import CocoImages, find_coco
from davit.data.detection_transforms import DetectionAugmentation, DetectionTransform
from davit.data.evaluation_loader import equal_sizes, evaluation_batches, picture_batches
from davit.data.loader import DenseSamples, Part, TrainSamples
from davit.data.masks import find_masks
from davit.data.scenes import MOST_DIGITS, Scenes
from davit.data.segmentation_transforms import SegmentationAugmentation, SegmentationTransform
from davit.data.transforms import Augmentation, TrainTransform
from davit.evaluation.mean_iou import check_labels
from davit.models.clip_config import ImageTextHead
from davit.preprocessing import Preprocessing
from davit.structures import Batch
from davit.tasks.classification import ClassificationConfig, ClassificationTask
from davit.tasks.contrastive import ContrastiveConfig, ContrastiveTask
from davit.tasks.detection import DetectionConfig, DetectionTask
from davit.tasks.segmentation import SegmentationConfig, SegmentationTask
from davit.train.build import Images, build_images
from davit.train.distributed import World
from davit.train.plan import Metric
from davit.train.recipe import DataRecipe, Recipe
from davit.train.step import Task

MOST_TEST_SCENES = 200
LOOKED_AT = 32  # masks of each part whose labels are looked at before a run
LEAST_SHARE = 1e-3  # of the pixels, for a class that those looked at may not show


class ScoredTask(Task, Protocol):
    """A loss and a metric.

    Attributes:
        score: key of the metric that chooses the best model.
    """

    score: str

    def metric(self) -> Metric:
        """Return a fresh metric."""
        ...


def list_images(recipe: Recipe) -> Images:
    """List what a recipe learns from and is scored on.

    Raises:
        ValueError: it is not there, or not what the task takes.
    """
    data = recipe.data
    task = "segmentation" if isinstance(recipe.task, SegmentationConfig) else "detection"
    if isinstance(recipe.task, ClassificationConfig):
        return build_images(data, recipe.runtime.seed)
    if isinstance(recipe.task, ContrastiveConfig):
        return _list_pairs(recipe)
    if data.source == "scenes":
        held_out = _test_scenes(data)
        train = Scenes("train", data.scenes, task, **_training(data, MOST_DIGITS))
        return Images(train, Scenes("test", held_out, task))
    if not data.root:
        raise ValueError("say where the images are: data.root=DIR")
    if isinstance(recipe.task, SegmentationConfig):
        train, validation = find_masks(data.root, data.ignore, class_list=data.class_list or None)
        for part in (train, validation):
            check_labels(torch.from_numpy(part.histogram(LOOKED_AT)), len(train.classes))
        return Images(train, validation)
    found = find_coco(data.root)
    train = CocoImages(*found.train, masks=recipe.task.masks)
    validation = CocoImages(*found.validation, masks=recipe.task.masks, classes=train.classes)
    useful = train.with_objects()
    notes = [f"{len(train) - len(useful)} training pictures without objects are left out"] * (len(useful) < len(train))
    notes += [f"{train.dropped} training objects without area are left out"] * bool(train.dropped)
    return Images(Part(train, useful), validation, tuple(notes))


def _training(data: DataRecipe, most: int) -> dict[str, Any]:
    """What training scenes have that those for validation have not; these have up to `most` digits."""
    most = data.most_digits or max(most, data.fewest_digits)
    bright = round(data.bright_share * data.scenes)
    return {
        "fewest": data.fewest_digits,
        "most": most,
        "sparse": data.sparse_share,
        "bright": bright,
        "bend": data.bend,
        "stroke": data.stroke,
    }


def _small_scenes(recipe: Recipe) -> int:
    """How many captioned scenes are small: those of the steps whose images are.

    Raises:
        ValueError: they would come again, among large ones.
    """
    data = recipe.data
    batch_size = min(data.batch_size, data.scenes)
    total = recipe.schedule.total_steps(data.scenes, batch_size)
    first = data.first_steps(total)
    if first and total * batch_size >= data.scenes + batch_size:
        raise ValueError(
            "data.first_size with captioned scenes is for one epoch: raise data.scenes, not schedule.epochs, "
            "or set data.first_size=0"
        )
    return min(first * batch_size, data.scenes)


def _test_scenes(data: DataRecipe) -> int:
    return min(max(1, data.scenes // 10), MOST_TEST_SCENES)


def _list_pairs(recipe: Recipe) -> Images:
    """List pictures with captions.

    Raises:
        ValueError: the source has none, or what a batch is compared with would not be the whole batch.
    """
    data, head = recipe.data, recipe.model.head
    if data.source not in ("scenes", "captions") or not isinstance(head, ImageTextHead):
        raise ValueError(f"image-text learns from data.source=scenes or captions, got {data.source}")
    if recipe.runtime.accumulate != 1:
        raise ValueError("runtime.accumulate must be 1: each pair is compared with the whole batch")
    context = head.text.context
    if data.source == "scenes":
        train = CaptionedScenes(
            "train",
            data.scenes,
            size=data.image_size,
            first=_small_scenes(recipe),
            first_size=data.first_size,
            **_training(data, MOST_TOLD),
        )
        test = CaptionedScenes("test", _test_scenes(data), size=data.image_size)
        return Images(Pairs(train, context), Pairs(test, context))
    if not data.root:
        raise ValueError("say where the captions are: data.root=DIR, with captions.csv or shards, or data.root=TABLE")
    if parts := caption_parts(data.root):
        if not {"train", "val"} <= set(parts):
            raise ValueError(f"{data.root} holds the parts {', '.join(parts)}: a run needs shards of train and of val")
        first, second = CaptionShards(data.root, "train"), CaptionShards(data.root, "val")
        return Images(Pairs(first, context), Pairs(second, context), (*first.notes, *second.notes))
    root, roots = Path(data.root), caption_roots(data.root)
    if "train" in roots:
        first, second = find_captions(roots["train"]), find_captions(roots["val"])
        return Images(Pairs(first, context), Pairs(second, context), (*first.notes, *second.notes))
    found = find_captions(root)
    first, second = split_captions(found, data.validation_share, recipe.runtime.seed)
    images = len({caption.image for caption in second.captions})
    note = f"{root} has no train/ and val/: {images} of its images are held out for validation"
    return Images(Pairs(first, context), Pairs(second, context), (*found.notes, note))


def first_values(recipe: Recipe, images: Images) -> dict[str, Tensor]:
    """First values that follow from the training data, by name of the parameter.

    The biases of both classifiers of a segmenter are the logarithms of the classes' shares, as the focal loss has its
    prior (arXiv 1708.02002, section 3.3).
    """
    if not isinstance(recipe.task, SegmentationConfig) or not recipe.task.prior_samples:
        return {}
    counts = torch.from_numpy(images.train.histogram(recipe.task.prior_samples))[: len(images.train.classes)]
    biases = (counts / counts.sum().clamp(min=1)).clamp(min=LEAST_SHARE).log().float()
    return {"head.classifier.bias": biases, "auxiliary.classifier.bias": biases}


def make_task(recipe: Recipe, images: Images) -> ScoredTask:
    """The loss and metric of a recipe."""
    classes = images.train.classes
    match recipe.task:
        case ClassificationConfig() as config:
            return ClassificationTask(config, len(classes))
        case ContrastiveConfig() as config:
            return ContrastiveTask(config)
        case SegmentationConfig() as config:
            return SegmentationTask(config, classes)
        case DetectionConfig() as config:
            validation = images.validation
            return DetectionTask(config, classes, validation.ground_truth(), validation.category_ids)


def train_samples(recipe: Recipe, preprocessing: Preprocessing, images: Images) -> TrainSamples:
    """Training images as the model sees them."""
    seed = recipe.runtime.seed
    match recipe.data.augmentation:
        case Augmentation() as augmentation:
            return TrainSamples(images.train, TrainTransform(augmentation, preprocessing), seed)
        case DetectionAugmentation() as augmentation:
            return DenseSamples(images.train, DetectionTransform(augmentation, preprocessing), seed)
        case SegmentationAugmentation() as augmentation:
            return DenseSamples(images.train, SegmentationTransform(augmentation, preprocessing), seed)


def validation_batches(
    recipe: Recipe, preprocessing: Preprocessing, images: Images, world: World, *, batch_size: int, workers: int
) -> tuple[Callable[[], Iterator[Batch]], int]:
    """This process's share of the validation batches, and how many the largest share has."""
    count = len(images.validation)
    if isinstance(recipe.task, ClassificationConfig | ContrastiveConfig):
        part = Part(images.validation, list(range(world.rank, count, world.size)))
        return (
            lambda: evaluation_batches(part, preprocessing, batch_size=batch_size, workers=workers),
            -(-count // (batch_size * world.size)),
        )
    shares: list[Any] = [
        equal_sizes(images.validation, preprocessing, range(rank, count, world.size), batch_size)
        for rank in range(world.size)
    ]
    return (
        lambda: picture_batches(images.validation, preprocessing, order=shares[world.rank], workers=workers),
        max(map(len, shares)),
    )
