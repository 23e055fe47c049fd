"""Recipe `finetune`: any folder of class folders, from fresh weights or from any checkpoint (`model.init=`)."""

from davit.data.transforms import Augmentation
from davit.models.variants import variant as architecture
from davit.recipes.about import About
from davit.recipes.start import Start
from davit.tasks.classification import ClassificationConfig
from davit.train.optimizer import OptimizerConfig
from davit.train.recipe import DataRecipe, ModelRecipe, Recipe, RuntimeRecipe
from davit.train.schedule import ScheduleConfig

LAYER_DECAY = 0.8
FROZEN_EPOCHS = 1.0


def build(name: str, start: Start) -> Recipe:
    """Ours: timm's and fastai's habits for small data.

    Weights that were learned before are treated gently: the new head learns alone at first, so that the gradients of
    its random weights do not reach the backbone, and lower layers, which are the most general, move less. Fresh weights
    get neither.
    """
    variant = start.variant or "davit_tiny"
    return Recipe(
        name=name,
        model=ModelRecipe(
            variant=variant, backbone=architecture(variant).override(drop_path=0.1), init=start.init or ""
        ),
        task=ClassificationConfig(label_smoothing=0.1, mixup=0.2, cutmix=1.0, mix_probability=0.5),
        data=DataRecipe(
            source="folder",
            image_size=224,
            batch_size=start.batch_size or 64,
            augmentation=Augmentation(crop_scale=(0.35, 1.0), rand_augment="rand-m7-mstd0.5-inc1", erasing=0.1),
        ),
        optimizer=OptimizerConfig(
            learning_rate=5e-4,
            layer_decay=LAYER_DECAY if start.init else 1.0,
            frozen_epochs=FROZEN_EPOCHS if start.init else 0.0,
        ),
        schedule=ScheduleConfig(epochs=30, warmup_epochs=2, cooldown_epochs=0),
        runtime=RuntimeRecipe(ema=0.998),
    )


def about(name: str) -> About:
    """What `finetune` is."""
    return About(
        summary="your folder of class folders, from fresh weights or from any checkpoint",
        source="no paper: usual practice for small data (timm, fastai, BEiT's layer decay)",
        ours=f"everything; with model.init, layer_decay={LAYER_DECAY:g} and frozen_epochs={FROZEN_EPOCHS:g}",
        command=f"davit train {name} data.root=flowers model.init=davit_tiny.msft_in1k",
        expected="depends on the data",
    )
