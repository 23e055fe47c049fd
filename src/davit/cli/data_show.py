"""`davit data show`: what the model will see."""

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from davit.cli.builtin import is_builtin

if TYPE_CHECKING:
    from davit.train.recipe import Recipe

_HELP = """Write a contact sheet of training images: each as it is, and as the model will see it in the first epochs,
with boxes, masks and classes where there are any.

  davit data show flowers
  davit data show coco
  davit data show flowers finetune data.augmentation.rand_augment=rand-m9-mstd0.5-inc1 --out sheet.png
"""

OWN_DATA = ("coco.", "ade20k.", "digits.", "image_text.")  # recipes that say themselves where images come from


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def show(
        root: Annotated[Positional[str], arg(metavar="DIR")],
        settings: Annotated[Positional[tuple[str, ...]], arg(metavar="[RECIPE] FIELD=VALUE...")] = (),
        /,
        *,
        out: Annotated[Path, arg(metavar="FILE.png")] = Path("augmented.png"),
        images: Annotated[int, arg(metavar="N")] = 12,
        draws: Annotated[int, arg(metavar="N")] = 5,
        json: bool = False,
    ) -> int:
        """Show.

        Args:
            root: Class folders, train/ and val/ with them, shards, COCO's layout, pictures and index masks, or pictures
                with captions; built in are `digits`, `digits.detection` and so on.
            settings: A recipe, by default the usual one for such images, and fields to set otherwise, as for `davit
                train`.
            out: The picture to write; one that is there is replaced.
            images: Images to show, of as many classes as possible.
            draws: Epochs to show of each.
            json: Print the path and the size of the picture as JSON.
        """
        from davit.atomic import atomic_write
        from davit.explain.contact_sheet import augmentation_sheet
        from davit.explain.drawing import png_bytes

        sheet = augmentation_sheet(recipe_on(root, settings), images=images, draws=draws)
        with atomic_write(out) as file:
            file.write(png_bytes(sheet))
        print(dumps({"file": str(out), "width": sheet.width, "height": sheet.height}) if json else out)
        return 0

    return tyro.cli(show, prog="davit data show", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def recipe_on(root: str, settings: tuple[str, ...]) -> "Recipe":
    """Build the recipe that `settings` may begin with, on the images in `root`."""
    from davit.cli.train import recipe_with

    named = bool(settings) and "=" not in settings[0]
    builtin = is_builtin(root)
    name = settings[0] if named else _recipe_for(root, builtin)
    place = (f"data.root={root}",)
    if builtin:
        place = (f"data.source={'digits' if root == 'digits' else 'scenes'}",)
    elif not name.startswith(OWN_DATA):
        place = ("data.source=folder", *place)
    return recipe_with(name, (*place, *settings[named:]))


def _recipe_for(root: str, builtin: bool) -> str:
    """The recipe that images of this kind are usually trained by."""
    from davit.data.check_captions import is_captions
    from davit.data.coco import is_coco
    from davit.data.masks import has_masks

    if builtin:
        return root
    if is_coco(root):
        return "coco.mask_rcnn_1x"
    return "ade20k.upernet" if has_masks(root) else "image_text.unicl" if is_captions(root) else "finetune"
