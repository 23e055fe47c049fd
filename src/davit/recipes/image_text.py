"""Recipe `image_text.unicl`: the paper's path to its Giant, image-text contrastive pre-training, in any size."""

from davit.data.transforms import Augmentation
from davit.models.clip_config import ImageTextHead, TextConfig
from davit.models.variants import IMAGE_SIZES
from davit.models.variants import variant as architecture
from davit.recipes.about import About
from davit.recipes.start import Start
from davit.tasks.contrastive import ContrastiveConfig
from davit.train.optimizer import OptimizerConfig
from davit.train.recipe import DataRecipe, ModelRecipe, Recipe, RuntimeRecipe
from davit.train.schedule import ScheduleConfig

BATCH = 4096
RATE = 1e-3  # at BATCH images a step
LARGE = ("davit_large", "davit_huge", "davit_giant")


def build(name: str, start: Start) -> Recipe:
    """Ours but for the loss: the paper names image-text contrastive learning and gives no settings."""
    variant = start.variant or "davit_tiny"
    large = variant.startswith(LARGE)
    batch = start.batch_size or BATCH
    text = TextConfig(width=768, heads=12) if large else TextConfig()
    return Recipe(
        name=name,
        model=ModelRecipe(
            variant=variant,
            backbone=architecture(variant).override(drop_path=0.2 if large else 0.1, gradient_checkpointing=large),
            init=start.init or "",
            head=ImageTextHead(embedding=text.width, text=text),
        ),
        task=ContrastiveConfig(),
        data=DataRecipe(
            source="captions",
            image_size=min(IMAGE_SIZES[variant], 224),
            batch_size=batch,
            augmentation=Augmentation(crop_scale=(0.5, 1.0), flip=0.0, rand_augment="", erasing=0.0),
        ),
        optimizer=OptimizerConfig(learning_rate=RATE * (batch / BATCH) ** 0.5, betas=(0.9, 0.98), weight_decay=0.05),
        schedule=ScheduleConfig(epochs=2 if large else 32, warmup_epochs=0.02 if large else 1, cooldown_epochs=0),
        runtime=RuntimeRecipe(parallel="fsdp" if large else "ddp"),
    )


def about(name: str) -> About:
    """What the recipe is."""
    return About(
        summary="image-text pre-training on captions of yours, UniCL, any variant",
        source="loss: UniCL (arXiv 2204.03610), equations 1 to 3; the DaViT paper, section 4.1, only names the path",
        ours="everything but the loss: text tower as CLIP's for ViT-B (width 768 from Large on), AdamW with CLIP's "
        "betas, rate by the square root of the batch, crops of half the image at least and no mirroring, for captions "
        "say left and right; 32 epochs as CLIP, from Large on 2, which are 3 billion samples of 1.5 billion pairs, as "
        "many as Florence-2 saw at first; then finetune or imagenet.*_512 with model.init=RUN/model.safetensors",
        command=f"davit train {name} data.root=DIR model.variant=davit_base",
        expected="not measured; the paper's Giant, after 1.5 billion pairs, has 90.4 % on ImageNet-1K at 512 px",
        rate=f"{RATE:g} at the peak for {BATCH} images a step, by the square root of the batch",
    )
