"""Recipe `finetune`: any folder of class folders, from fresh weights or from any checkpoint (`model.init=`)."""

from davit.data.transforms import Augmentation
from davit.models.variants import variant as architecture
from davit.tasks.classification import ClassificationConfig
from davit.train.optimizer import OptimizerConfig
from davit.train.recipe import DataRecipe, ModelRecipe, Recipe, RuntimeRecipe
from davit.train.schedule import ScheduleConfig


def finetune(variant: str = "davit_tiny") -> Recipe:
    """Ours: timm's and fastai's habits for small data; lower layers move less, the average is kept."""
    return Recipe(
        name="finetune",
        model=ModelRecipe(variant=variant, backbone=architecture(variant).override(drop_path=0.1)),
        task=ClassificationConfig(label_smoothing=0.1, mixup=0.2, cutmix=1.0, mix_probability=0.5),
        data=DataRecipe(
            source="folder",
            image_size=224,
            batch_size=64,
            augmentation=Augmentation(crop_scale=(0.35, 1.0), rand_augment="rand-m7-mstd0.5-inc1", erasing=0.1),
        ),
        optimizer=OptimizerConfig(learning_rate=5e-4, layer_decay=0.8),
        schedule=ScheduleConfig(epochs=30, warmup_epochs=2, cooldown_epochs=0),
        runtime=RuntimeRecipe(ema=0.998),
    )
