"""Complete training runs, one function each."""

from importlib import import_module
from typing import TYPE_CHECKING

from davit.naming import unknown_name

if TYPE_CHECKING:
    from davit.train.recipe import Recipe

RECIPES = {
    "digits": "davit.recipes.digits",
    "finetune": "davit.recipes.finetune",
}


def make_recipe(name: str, variant: str | None = None) -> "Recipe":
    """Build a recipe by name, for another variant than its own if one is given."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    build = getattr(import_module(RECIPES[name]), name)
    return build(variant) if variant else build()
