"""Complete training runs: a file for each kind, whose `build` makes the recipe and whose `about` tells of it."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from davit.naming import unknown_name

if TYPE_CHECKING:
    from davit.recipes.about import About
    from davit.train.recipe import Recipe

RECIPES = {
    "digits": "davit.recipes.digits",
    "digits.detection": "davit.recipes.digits",
    "digits.retinanet": "davit.recipes.digits",
    "digits.segmentation": "davit.recipes.digits",
    "digits.contrastive": "davit.recipes.digits",
    "finetune": "davit.recipes.finetune",
    "imagenet.davit_tiny": "davit.recipes.imagenet",
    "imagenet.davit_small": "davit.recipes.imagenet",
    "imagenet.davit_base": "davit.recipes.imagenet",
    "imagenet.davit_large": "davit.recipes.imagenet",
    "imagenet.davit_huge": "davit.recipes.imagenet",
    "imagenet.davit_giant": "davit.recipes.imagenet",
    "imagenet22k.davit_large": "davit.recipes.imagenet",
    "imagenet22k.davit_huge": "davit.recipes.imagenet",
    "imagenet22k.davit_giant": "davit.recipes.imagenet",
    "imagenet.davit_large_384": "davit.recipes.imagenet",
    "imagenet.davit_huge_512": "davit.recipes.imagenet",
    "imagenet.davit_giant_512": "davit.recipes.imagenet",
    "coco.mask_rcnn_1x": "davit.recipes.coco",
    "coco.mask_rcnn_3x": "davit.recipes.coco",
    "coco.retinanet_1x": "davit.recipes.coco",
    "coco.retinanet_3x": "davit.recipes.coco",
    "image_text.unicl": "davit.recipes.image_text",
    "ade20k.upernet": "davit.recipes.ade20k",
}


def make_recipe(
    name: str, variant: str | None = None, *, init: str | None = None, batch_size: int | None = None
) -> "Recipe":
    """Build a recipe by name.

    Args:
        name: one of `RECIPES`.
        variant: architecture instead of the recipe's own.
        init: what to start from instead of the recipe's own start; empty for fresh weights.
        batch_size: images per step instead of the recipe's own.

    Raises:
        ValueError: no such recipe or variant (the nearest are named), or a batch without images.
    """
    from davit.recipes.start import Start

    return _module(name).build(name, Start(variant=variant, init=init, batch_size=batch_size))


def about_recipe(name: str) -> "About":
    """What a recipe is, where it comes from and what it costs; an unknown name raises and names the nearest."""
    return _module(name).about(name)


def _module(name: str) -> ModuleType:
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return import_module(RECIPES[name])
