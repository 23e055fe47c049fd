"""Recipe `digits`: 1,437 built-in handwritten digits, about a minute on two CPU cores, test top-1 over 0.98."""

from davit.data.transforms import Augmentation
from davit.models.variants import variant as architecture
from davit.recipes.about import About
from davit.recipes.start import Start
from davit.tasks.classification import ClassificationConfig
from davit.train.optimizer import OptimizerConfig
from davit.train.recipe import DataRecipe, ModelRecipe, Recipe, RuntimeRecipe
from davit.train.schedule import ScheduleConfig


def build(name: str, start: Start) -> Recipe:
    """Ours, not the paper's: sized so that a demonstration ends while one watches."""
    variant = start.variant or "davit_pico"
    return Recipe(
        name=name,
        model=ModelRecipe(
            variant=variant,
            backbone=architecture(variant).override(in_channels=1, drop_path=0.05, window=3),
            init=start.init or "",
        ),
        task=ClassificationConfig(label_smoothing=0.1, mixup=0.0, cutmix=0.0),
        data=DataRecipe(
            source="digits",
            image_size=24,
            channels=1,
            crop=1.0,
            batch_size=start.batch_size or 64,
            workers=0,
            augmentation=Augmentation(
                crop_scale=(1.0, 1.0), flip=0.0, rotate=12.0, translate=0.08, zoom=0.12, rand_augment="", erasing=0.0
            ),
        ),
        optimizer=OptimizerConfig(learning_rate=4e-3),
        schedule=ScheduleConfig(epochs=18, warmup_epochs=1, cooldown_epochs=0),
        runtime=RuntimeRecipe(ema=0.98),
    )


def about(name: str) -> About:
    """What `digits` is."""
    return About(
        summary="the built-in handwritten digits, about a minute",
        source="no paper: scikit-learn's digits, a fixed split",
        ours="everything",
        command=f"davit train {name}",
        expected="top-1 over 0.98 on 360 test digits (docs/results.md)",
        classes=10,
        images=1437,
        measured="50 s on two CPU cores (docs/results.md)",
    )
