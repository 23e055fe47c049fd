"""Recipe `ade20k.upernet`: the paper's semantic segmentation on ADE20K (official mmseg configuration)."""

from davit.data.segmentation_transforms import SegmentationAugmentation
from davit.models.segmenter_config import UPerNetHead
from davit.models.variants import variant as architecture
from davit.recipes.about import About
from davit.recipes.start import Start
from davit.tasks.segmentation import SegmentationConfig
from davit.train.optimizer import OptimizerConfig
from davit.train.recipe import DataRecipe, ModelRecipe, Recipe, RuntimeRecipe
from davit.train.schedule import ScheduleConfig

IMAGES, CLASSES = 20_210, 150
BATCH, STEPS = 16, 160_000
MACS = 236_000_000_000  # of Tiny at 512x512, a quarter of the published 940 G at 512x2048


def build(name: str, start: Start) -> Recipe:
    """The official configuration: 160,000 steps of 16 crops of 512 px."""
    variant = start.variant or "davit_tiny"
    return Recipe(
        name=name,
        model=ModelRecipe(
            variant=variant,
            backbone=architecture(variant).override(drop_path=0.3),
            init=f"{variant}.msft_in1k" if start.init is None else start.init,
            head=UPerNetHead(),
        ),
        task=SegmentationConfig(),
        data=DataRecipe(
            source="masks",
            image_size=512,
            longest=2048,
            crop=1.0,
            interpolation="bilinear",
            batch_size=start.batch_size or BATCH,
            augmentation=SegmentationAugmentation(),
        ),
        optimizer=OptimizerConfig(learning_rate=6e-5, weight_decay=0.01, clip_norm=0.0, decay_all=True),
        schedule=ScheduleConfig(
            epochs=-(-STEPS * BATCH // IMAGES),
            steps=STEPS,
            warmup_epochs=0,
            warmup_steps=1500,
            warmup_start=1e-6,
            cooldown_epochs=0,
            shape="linear",
            floor=0.0,
        ),
        runtime=RuntimeRecipe(evaluate_every=13),
    )


def about(name: str) -> About:
    """What the recipe of ADE20K is."""
    return About(
        summary="ADE20K, UPerNet, 160,000 steps at 512 px",
        source="the paper, section 4.3 (arXiv 2204.03645); official mmseg configuration of Tiny (fc79470)",
        ours="drop path of Small and Base as Tiny's; an evaluation every 13 epochs, not 16,000 steps; bf16 on a GPU",
        command=f"torchrun --nproc-per-node 8 -m davit train {name} data.root=ADEChallengeData2016",
        expected="mean IoU 46.3 (Tiny), 48.8 (Small), 49.4 (Base), single scale (official README)",
        classes=CLASSES,
        images=IMAGES,
        macs=MACS,
    )
