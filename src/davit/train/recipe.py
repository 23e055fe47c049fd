"""One complete, typed training run. It is saved as JSON in the run folder, and compared there before a run goes on."""

import math
from dataclasses import dataclass, field
from typing import Literal

from davit.data.detection_transforms import DetectionAugmentation
from davit.data.digit_shapes import MOST_BENT, MOST_STROKE
from davit.data.scenes import MOST_LAID
from davit.data.segmentation_transforms import SegmentationAugmentation
from davit.data.transforms import Augmentation
from davit.models.clip_config import ImageTextHead
from davit.models.config import DaViTConfig
from davit.models.detector_config import DetectorHead
from davit.models.segmenter_config import UPerNetHead
from davit.tasks.classification import ClassificationConfig
from davit.tasks.contrastive import ContrastiveConfig
from davit.tasks.detection import DetectionConfig
from davit.tasks.segmentation import SegmentationConfig
from davit.train.optimizer import OptimizerConfig
from davit.train.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """What is trained, and what it starts from.

    Attributes:
        variant: name of the architecture; a given `init` decides instead.
        backbone: the architecture itself; with `init` only `drop_path` and `gradient_checkpointing` count.
        init: a checkpoint of any known format or a weight name to start from; empty for fresh weights.
        text_init: for image-text models, a checkpoint of open_clip or of ours whose text tower to start from.
        window: side of the windows where `init` was trained at another image size; 0 keeps those of its architecture.
        head: what stands on the backbone of a detector or segmenter, or beside that of an image-text model; a
            classifier's head has no settings.
    """

    variant: str
    backbone: DaViTConfig
    init: str = ""
    text_init: str = ""
    window: int = 0
    head: DetectorHead | UPerNetHead | ImageTextHead | None = None


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """What it learns from.

    Attributes:
        source: the built-in `digits` or `scenes` of them; a `folder` of class folders or shards; `coco` annotations;
            `masks`: a folder of pictures and index masks; `captions`: pictures with captions.
        root: that folder, with `train/` and `val/` or to be split.
        validation_share: share of a folder without `train/` and `val/` that is held out.
        scenes: training scenes in an epoch; a tenth as many are there for validation.
        bright_share: share of the scenes, seen first, in which digits are never darker than the ground:
            fresh weights begin to learn with them.
        fewest_digits: digits laid into a training scene at least.
        most_digits: digits laid into it at most, as far as they find a place; 0 for as many as scenes for validation
            have, which is up to 8, or up to 4 with captions.
        sparse_share: share of the training scenes that have fewer than `fewest_digits`, at least one.
        bend: how far the shapes of digits are bent in training scenes, in pixels of their 8x8 sources.
        stroke: how much thicker or thinner their strokes are drawn there, in levels of ink, of 255.
        class_list: file with the class names of `masks`, a line each, where it does not lie in `root`.
        ignore: labels of `masks` that stand for no class, beside 255.
        image_size: side of the square the model sees, in pixels.
        first_size: side that images are shrunk to in the first `first_share` of the steps, where they teach nearly as
            much for less computation (progressive learning, arXiv 2104.00298, section 4, with two sizes); 0 for
            `image_size` from the start. Labels of pixels stay as large as they are. Scenes with captions are drawn so
            small then, with fewer digits of the same size, in runs of one epoch.
        first_share: share of the steps with images of `first_size`.
        longest: where pictures keep their shape, as in detection: `image_size` is then their short side, unless this
            would make the long one longer than `longest`; 0 makes squares.
        channels: 1 for grey, 3 for RGB.
        crop: side of the central crop in evaluation over the side it is cut from.
        interpolation: filter of resizes.
        batch_size: images per step, over all processes and micro-batches.
        workers: processes that decode and augment; 0 does it between steps, -1 takes the CPUs that training leaves.
        augmentation: how training images are varied.
    """

    source: Literal["digits", "scenes", "folder", "coco", "masks", "captions"]
    root: str = ""
    validation_share: float = 0.2
    scenes: int = 2000
    bright_share: float = 0.0
    fewest_digits: int = 1
    most_digits: int = 0
    sparse_share: float = 0.0
    bend: float = 0.0
    stroke: float = 0.0
    class_list: str = ""
    ignore: tuple[int, ...] = ()
    image_size: int = 224
    first_size: int = 0
    first_share: float = 0.0
    longest: int = 0
    channels: int = 3
    crop: float = 0.9
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    batch_size: int = 128
    workers: int = -1
    augmentation: Augmentation | DetectionAugmentation | SegmentationAugmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        """Refuse what cannot be loaded."""
        if self.batch_size < 1 or self.image_size < 1 or self.workers < -1:
            raise ValueError("batch_size and image_size must be at least 1, workers at least 0, or -1 to choose")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels}")
        if self.scenes < 10:
            raise ValueError(f"scenes must be at least 10, got {self.scenes}")
        if not 0 <= self.bright_share <= 1:
            raise ValueError(f"bright_share must lie in [0, 1], got {self.bright_share}")
        if not 1 <= self.fewest_digits <= (self.most_digits or MOST_LAID) <= MOST_LAID:
            raise ValueError(
                f"fewest_digits and most_digits must lie in 1 to {MOST_LAID}, in order, got {self.fewest_digits} "
                f"and {self.most_digits}"
            )
        if not 0 <= self.sparse_share <= 1 or (self.sparse_share and self.fewest_digits == 1):
            raise ValueError(
                "sparse_share is a share of scenes with fewer than fewest_digits, got "
                f"{self.sparse_share} and {self.fewest_digits}"
            )
        if not 0 <= self.bend <= MOST_BENT:
            raise ValueError(f"bend must lie in 0 to {MOST_BENT} pixels, got {self.bend}")
        if not 0 <= self.stroke <= MOST_STROKE:
            raise ValueError(f"stroke must lie in 0 to {MOST_STROKE} levels of ink, got {self.stroke}")
        if not 0 <= self.first_size <= self.image_size or not 0 <= self.first_share <= 1:
            raise ValueError(
                f"first_size must lie in 0 to image_size ({self.image_size}) and first_share in [0, 1], "
                f"got {self.first_size} and {self.first_share}"
            )
        if self.longest and self.longest < self.image_size:
            raise ValueError(f"longest must be 0 or at least image_size, got {self.longest} and {self.image_size}")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share must lie in (0, 1), got {self.validation_share}")

    def first_steps(self, total: int) -> int:
        """How many of all steps see images of `first_size`."""
        return math.ceil(self.first_share * total) if self.first_size else 0


@dataclass(frozen=True, kw_only=True)
class RuntimeRecipe:
    """How it runs; nothing here should change what is learnt, but for rounding.

    Attributes:
        seed: from which all randomness follows.
        device: `auto` takes a GPU where there is one.
        precision: `auto` is bf16 on a GPU and fp32 on a CPU.
        parallel: over several processes (torchrun), each holds the whole model (`ddp`) or a shard of it (`fsdp`).
        accumulate: micro-batches into which each process splits its share of a batch, to save memory.
        compile: compile the model for training.
        ema: decay of the averaged weights that are evaluated and saved; 0 for none.
        evaluate_every: epochs between evaluations.
        save_minutes: minutes between checkpoints; one is also saved at the end.
        tensorboard: write the records of metrics.jsonl as TensorBoard events, too.
    """

    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    accumulate: int = 1
    compile: bool = False
    ema: float = 0.0
    evaluate_every: int = 1
    save_minutes: float = 10.0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if self.evaluate_every < 1 or self.accumulate < 1 or self.save_minutes < 0 or self.seed < 0:
            raise ValueError("evaluate_every and accumulate must be at least 1, save_minutes and seed not negative")
        if self.parallel == "fsdp" and self.precision == "fp16":
            raise ValueError("runtime.parallel=fsdp needs runtime.precision=bf16 or fp32: fp16 would need a loss scale")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run."""

    name: str
    model: ModelRecipe
    task: ClassificationConfig | DetectionConfig | SegmentationConfig | ContrastiveConfig
    data: DataRecipe
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    runtime: RuntimeRecipe

    def classification(self, what: str) -> tuple[ClassificationConfig, Augmentation]:
        """The settings of a classification recipe, for what is there for these alone.

        Raises:
            ValueError: it is another task's; `what` names what was asked for.
        """
        task, augmentation = self.task, self.data.augmentation
        if not isinstance(task, ClassificationConfig) or not isinstance(augmentation, Augmentation):
            raise ValueError(f"{what} is for recipes of classification, and {self.name} is none")
        return task, augmentation
