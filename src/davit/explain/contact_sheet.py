"""What a model will see in training: pictures beside several draws of their augmentation."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from davit.data.loader import AnnotatedImages
from davit.explain.draw_results import draw_truth
from davit.explain.drawing import enlarge, fit, picture
from davit.preprocessing import as_mode
from davit.structures import Pair
from davit.tasks.classification import ClassificationConfig
from davit.train.build import build_preprocessing
from davit.train.recipe import Recipe
from davit.train.sides import list_images, train_samples

CELL = 168  # pixels
GAP, PAIR_GAP, LINE, MARGIN = 4, 20, 20, 16
GROUND, INK, FAINT = "#ffffff", "#1a1a1a", "#6b6b6b"


def augmentation_sheet(recipe: Recipe, *, images: int = 12, draws: int = 5) -> Image.Image:
    """Draw training images of a recipe, one a row: as it is, then in the epochs 0, 1, ... as the model sees it.

    The draws are those of the run: the same seed, epochs and indices give the same pixels. Mixing of images (mixup,
    cutmix) comes after, for whole batches, and is not shown.

    Args:
        recipe: what would be trained.
        images: number of images, of as many classes as possible.
        draws: number of epochs.

    Raises:
        ValueError: no images, or a number below 1.
    """
    if images < 1 or draws < 1:
        raise ValueError(f"images and draws must be at least 1, got {images} and {draws}")
    found = list_images(recipe)
    training, preprocessing = found.train, build_preprocessing(recipe.data, None)
    samples = train_samples(recipe, preprocessing, found)
    labelled = isinstance(recipe.task, ClassificationConfig)
    rows: list[tuple[str, list[Image.Image]]] = []
    for index in choose(training, images, recipe.runtime.seed, labelled=labelled):
        original, known = training[index]
        seen = [samples[epoch, index] for epoch in range(draws)]
        shown = [draw_truth(picture(each.pixels, preprocessing), each.target, training.classes) for each in seen]
        original = draw_truth(as_mode(original, recipe.data.channels), known, training.classes)
        name = training.classes[known] if labelled else f"picture {index}"
        rows.append((training.caption(index) if isinstance(known, Pair) else name, [original, *shown]))
    return _sheet(rows, _title(recipe))


def choose(images: AnnotatedImages, count: int, seed: int, *, labelled: bool = True) -> list[int]:
    """Pick images at random; labelled ones of a class that was not picked yet as long as there is one."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    if not labelled:
        return order[:count]
    first: dict[int, int] = {}
    for index in order[: 50 * count]:  # each is decoded for its class
        first.setdefault(images[index][1], index)
        if len(first) == count:
            break
    chosen = list(first.values())
    rest = [index for index in order if index not in set(chosen)]
    return (chosen + rest)[:count]


def _title(recipe: Recipe) -> str:
    place = Path(recipe.data.root).name or recipe.data.source
    side, longest = recipe.data.image_size, recipe.data.longest
    size = f"within {side}x{longest}" if longest else f"at {side}x{side}"
    return f"{place} with {recipe.name} {size}: as it is, then epochs 0, 1, ... of seed {recipe.runtime.seed}"


def _sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], title: str) -> Image.Image:
    columns = len(rows[0][1])
    width = 2 * MARGIN + columns * CELL + (columns - 2) * GAP + PAIR_GAP
    height = 2 * MARGIN + LINE + len(rows) * (CELL + LINE + GAP)
    sheet = Image.new("RGB", (width, height), GROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    draw.text((MARGIN, MARGIN - 4), fitting(draw, font, title, width - 2 * MARGIN), FAINT, font)
    for row, (name, pictures) in enumerate(rows):
        top = MARGIN + LINE + row * (CELL + LINE + GAP)
        for column, image in enumerate(pictures):
            cell = enlarge(fit(image, CELL), CELL).convert("RGB")
            left = MARGIN + column * (CELL + GAP) + (PAIR_GAP - GAP if column else 0)
            sheet.paste(cell, (left + (CELL - cell.width) // 2, top + (CELL - cell.height) // 2))
        draw.text((MARGIN, top + CELL + 2), fitting(draw, font, name, width - 2 * MARGIN), INK, font)
    return sheet


def fitting(
    draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str, width: int
) -> str:
    """Shorten a text to a width; what the font cannot draw becomes a question mark."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"{text}...", font) > width:
        text = text[:-1]
    return f"{text}..."
