"""Recipes `imagenet.*` and `imagenet22k.*`: the paper's runs (arXiv 2204.03645), and what completes them.

Three phases hold what all sizes share; a member holds what differs. The paper and its code give the first phase alone,
and only for Tiny, Small and Base; the other two follow Swin's public configs for ImageNet-22K.
"""

from dataclasses import dataclass

from davit.data.transforms import Augmentation
from davit.models.variants import variant as architecture
from davit.recipes.about import About
from davit.recipes.start import Start
from davit.tasks.classification import ClassificationConfig
from davit.train.optimizer import OptimizerConfig
from davit.train.recipe import DataRecipe, ModelRecipe, Recipe, RuntimeRecipe
from davit.train.schedule import ScheduleConfig

RATE_BATCH = 1024  # images a step for which a phase states its learning rate; the rate is proportional


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What all members of a phase share.

    Attributes:
        root: the usual name of its folder.
        images: training images.
        classes: classes.
        batch_size: images per step.
        rate: peak learning rate for 1,024 images per step.
        weight_decay: of AdamW.
        schedule: epochs and warm-up.
        crop: central crop in evaluation.
        crop_source: where that comes from.
        held_out: share of a folder without `val/` that is held out.
        source: where this comes from.
        ours: what does not.
    """

    root: str
    images: int
    classes: int
    batch_size: int
    rate: float
    weight_decay: float
    schedule: ScheduleConfig
    crop: float
    crop_source: str
    held_out: float = 0.2
    source: str
    ours: str


SCRATCH = Phase(
    root="imagenet",
    images=1_281_167,
    classes=1000,
    batch_size=1024,
    rate=1e-3,
    weight_decay=0.05,
    schedule=ScheduleConfig(epochs=300, warmup_epochs=5, cooldown_epochs=10),
    crop=0.9,
    crop_source="the official code's; timm publishes the same weights at 0.95: data.crop=0.95",
    source="the paper (arXiv 2204.03645); official train.py (dingmyu/davit fc79470) and README: batch 1024 at "
    "1e-3 or 2048 at 2e-3",
    ours="bf16 for fp16; a rate for each step, not each epoch; floor and start of the rate are shares of its peak; "
    "batches run on across the ends of epochs, so that no sample is left out",
)
PRETRAIN = Phase(
    root="imagenet22k",
    images=14_197_122,
    classes=21_841,
    batch_size=4096,
    rate=2.5e-4,
    weight_decay=0.05,
    schedule=ScheduleConfig(epochs=90, warmup_epochs=5, cooldown_epochs=0),
    crop=0.9,
    crop_source="ours",
    held_out=0.01,
    source="official code: 21,841 classes; the rest is Swin's swin_base_patch4_window7_224_22k.yaml",
    ours="epochs, rate, batch, drop path, size 224: no DaViT source gives them; 1 % of the images is held out",
)
TUNE = Phase(
    root="imagenet",
    images=1_281_167,
    classes=1000,
    batch_size=1024,
    rate=4e-5,
    weight_decay=1e-8,
    schedule=ScheduleConfig(epochs=30, warmup_epochs=5, cooldown_epochs=0),
    crop=1.0,
    crop_source="the official code's, for Large at 384",
    source="official code: 384 px, window 12 and crop 1.0 of Large; paper: 512 px of Huge and Giant, whose costs fit "
    "window 16; the rest is Swin's swin_large_patch4_window12_384_22kto1k_finetune.yaml",
    ours="epochs, rate, batch, drop path: no DaViT source gives them",
)


@dataclass(frozen=True, kw_only=True)
class Member:
    """What one recipe has for itself.

    Attributes:
        phase: what it shares.
        variant: architecture.
        image_size: side of the square in pixels.
        window: side of a window.
        drop_path: rate of the last sub-block.
        drop_path_source: where that comes from.
        expected: score, with its source.
        init: what it starts from, as a run leaves it.
        sharded: needs sharding (FSDP2) and activation checkpointing, for one device does not hold it.
    """

    phase: Phase
    variant: str
    image_size: int = 224
    window: int = 7
    drop_path: float
    drop_path_source: str
    expected: str
    init: str = ""
    sharded: bool = False


_CONFIGS = "as mmpretrain and openmixup have it; the official default is 0.1 for all sizes"
_BIRDER = "as birder has it; the paper trains this size on more data only"
_UNPUBLISHED = "none published"
_SWIN = "as Swin's"
_PAIRS = "with 1.5 billion private image-text pairs; with ImageNet-22K none is published"


def _published(official: str, released: str) -> str:
    return f"top-1 {official} (official README, crop 0.9); the released weights {released} (timm, crop 0.95)"


MEMBERS = {
    "imagenet.davit_tiny": Member(
        phase=SCRATCH,
        variant="davit_tiny",
        drop_path=0.1,
        drop_path_source=_CONFIGS,
        expected=_published("82.8", "82.69"),
    ),
    "imagenet.davit_small": Member(
        phase=SCRATCH,
        variant="davit_small",
        drop_path=0.2,
        drop_path_source=_CONFIGS,
        expected=_published("84.2", "84.25"),
    ),
    "imagenet.davit_base": Member(
        phase=SCRATCH,
        variant="davit_base",
        drop_path=0.4,
        drop_path_source=_CONFIGS,
        expected=_published("84.6", "84.65"),
    ),
    "imagenet.davit_large": Member(
        phase=SCRATCH, variant="davit_large", drop_path=0.4, drop_path_source=_BIRDER, expected=_UNPUBLISHED
    ),
    "imagenet.davit_huge": Member(
        phase=SCRATCH, variant="davit_huge", drop_path=0.5, drop_path_source=_BIRDER, expected=_UNPUBLISHED
    ),
    "imagenet.davit_giant": Member(
        phase=SCRATCH,
        variant="davit_giant",
        drop_path=0.5,
        drop_path_source=_BIRDER,
        expected=_UNPUBLISHED,
        sharded=True,
    ),
    "imagenet22k.davit_large": Member(
        phase=PRETRAIN, variant="davit_large", drop_path=0.2, drop_path_source=_SWIN, expected=_UNPUBLISHED
    ),
    "imagenet22k.davit_huge": Member(
        phase=PRETRAIN, variant="davit_huge", drop_path=0.2, drop_path_source=_SWIN, expected=_UNPUBLISHED
    ),
    "imagenet22k.davit_giant": Member(
        phase=PRETRAIN,
        variant="davit_giant",
        drop_path=0.2,
        drop_path_source=_SWIN,
        expected=_UNPUBLISHED,
        sharded=True,
    ),
    "imagenet.davit_large_384": Member(
        phase=TUNE,
        variant="davit_large_384",
        image_size=384,
        window=12,
        drop_path=0.2,
        drop_path_source=_SWIN,
        expected="top-1 87.5 (paper, via keras_cv_attention_models)",
        init="runs/imagenet22k.davit_large/model.safetensors",
    ),
    "imagenet.davit_huge_512": Member(
        phase=TUNE,
        variant="davit_huge",
        image_size=512,
        window=16,
        drop_path=0.2,
        drop_path_source=_SWIN,
        expected=f"top-1 90.2 {_PAIRS}",
        init="runs/imagenet22k.davit_huge/model.safetensors",
        sharded=True,
    ),
    "imagenet.davit_giant_512": Member(
        phase=TUNE,
        variant="davit_giant",
        image_size=512,
        window=16,
        drop_path=0.2,
        drop_path_source=_SWIN,
        expected=f"top-1 90.4 (official README) {_PAIRS}",
        init="runs/imagenet22k.davit_giant/model.safetensors",
        sharded=True,
    ),
}


def build(name: str, start: Start) -> Recipe:
    """The one builder; the learning rate is proportional to the images per step."""
    member = MEMBERS[name]
    phase, variant = member.phase, start.variant or member.variant
    batch_size = start.batch_size or phase.batch_size
    backbone = architecture(variant).override(
        window=member.window, drop_path=member.drop_path, gradient_checkpointing=member.sharded
    )
    init = member.init if start.init is None else start.init
    return Recipe(
        name=name,
        model=ModelRecipe(variant=variant, backbone=backbone, init=init, window=member.window if init else 0),
        task=ClassificationConfig(label_smoothing=0.1, mixup=0.8, cutmix=1.0, mix_probability=1.0, mix_switch=0.5),
        data=DataRecipe(
            source="folder",
            image_size=member.image_size,
            crop=phase.crop,
            interpolation="bicubic",
            batch_size=batch_size,
            validation_share=phase.held_out,
            augmentation=Augmentation(
                crop_scale=(0.08, 1.0), flip=0.5, rand_augment="rand-m9-mstd0.5-inc1", erasing=0.25
            ),
        ),
        optimizer=OptimizerConfig(
            learning_rate=phase.rate * batch_size / RATE_BATCH, weight_decay=phase.weight_decay, clip_norm=1.0
        ),
        schedule=phase.schedule,
        runtime=RuntimeRecipe(seed=42, parallel="fsdp" if member.sharded else "ddp"),
    )


def about(name: str) -> About:
    """What a member is."""
    member = MEMBERS[name]
    phase = member.phase
    start = f", from {member.init}" if member.init else ""
    data = "ImageNet-22K" if phase is PRETRAIN else "ImageNet-1K"
    window = f"; window {member.window}" if member.window != architecture(member.variant).window else ""
    return About(
        summary=f"{data} at {member.image_size} px, {phase.schedule.total_epochs} epochs{start}",
        source=phase.source,
        ours=f"{phase.ours}; drop path {member.drop_path:g}, {member.drop_path_source}{window}",
        rate=f"{phase.rate:g} for {RATE_BATCH} images a step, and in proportion",
        command=f"torchrun --nproc-per-node 8 -m davit train {name} data.root={phase.root}",
        crop=phase.crop_source,
        expected=member.expected,
        classes=phase.classes,
        images=phase.images,
    )
