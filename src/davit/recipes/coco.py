"""Recipes `coco.*`: the paper's detection and instance segmentation on COCO 2017 (official mmdet configurations)."""

from davit.data.detection_transforms import DetectionAugmentation
from davit.models.detector_config import DetectorHead, DetectorKind
from davit.models.variants import variant as architecture
from davit.recipes.about import About
from davit.recipes.start import Start
from davit.tasks.detection import DetectionConfig
from davit.train.optimizer import OptimizerConfig
from davit.train.recipe import DataRecipe, ModelRecipe, Recipe, RuntimeRecipe
from davit.train.schedule import ScheduleConfig

IMAGES, CLASSES = 117_266, 80  # of train2017, those with objects
BATCH, RATE = 16, 1e-4
EPOCHS: dict[str, tuple[int, tuple[float, ...]]] = {
    "1x": (12, (8, 11)),
    "3x": (36, (27, 33)),
}  # and when the rate drops
DROP_PATH = {"1x": 0.1, "3x": 0.2}
WEIGHTS = "{}.msft_in1k"

# Official README: box and mask AP of Tiny, Small and Base; multiply-adds at 800x1280.
SCORES = {
    "mask_rcnn_1x": "box / mask AP 45.0 / 41.1 (Tiny), 47.7 / 42.9 (Small), 48.2 / 43.3 (Base)",
    "mask_rcnn_3x": "box / mask AP 47.4 / 42.9 (Tiny), 49.5 / 44.3 (Small), 49.9 / 44.6 (Base)",
    "retinanet_1x": "box AP 44.0 (Tiny), 46.0 (Small), 46.7 (Base)",
    "retinanet_3x": "box AP 46.5 (Tiny), 48.2 (Small), 48.7 (Base)",
}
MACS = {"mask_rcnn": 263_000_000_000, "retinanet": 244_000_000_000}  # of Tiny


def build(name: str, start: Start) -> Recipe:
    """The official configuration of `mask_rcnn` or `retinanet`, trained for 12 (1x) or 36 (3x) epochs."""
    kind, length = _parts(name)
    variant = start.variant or "davit_tiny"
    epochs, drops = EPOCHS[length]
    return Recipe(
        name=name,
        model=ModelRecipe(
            variant=variant,
            backbone=architecture(variant).override(drop_path=DROP_PATH[length]),
            init=WEIGHTS.format(variant) if start.init is None else start.init,
            head=DetectorHead(kind=kind),
        ),
        task=DetectionConfig(masks=kind == "mask_rcnn"),
        data=DataRecipe(
            source="coco",
            image_size=800,
            longest=1333,
            crop=1.0,
            interpolation="bilinear",
            batch_size=start.batch_size or BATCH,
            augmentation=DetectionAugmentation(),
        ),
        optimizer=OptimizerConfig(learning_rate=RATE, weight_decay=0.05, clip_norm=0.0, decay_all=True),
        schedule=ScheduleConfig(
            epochs=epochs, warmup_epochs=0, warmup_steps=500, cooldown_epochs=0, shape="drops", drops=drops
        ),
        runtime=RuntimeRecipe(),
    )


def about(name: str) -> About:
    """What a recipe of COCO is."""
    kind, length = _parts(name)
    return About(
        summary=f"COCO 2017, {'Mask R-CNN' if kind == 'mask_rcnn' else 'RetinaNet'}, {EPOCHS[length][0]} epochs",
        source="the paper, section 4.2 (arXiv 2204.03645); official mmdet configurations of Tiny (fc79470)",
        ours="drop path of Small and Base as Tiny's; bf16 on a GPU for fp32; resizes are antialiased",
        command=f"torchrun --nproc-per-node 8 -m davit train {name} data.root=coco",
        expected=f"{SCORES[name.removeprefix('coco.')]} (official README)",
        classes=CLASSES,
        images=IMAGES,
        macs=MACS[kind],
    )


def _parts(name: str) -> tuple[DetectorKind, str]:
    kind, _, length = name.removeprefix("coco.").rpartition("_")
    return ("mask_rcnn" if kind == "mask_rcnn" else "retinanet"), length
