"""What a model will see in training: pictures beside several draws of their augmentation."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from davit.data.loader import ClassifiedImages, TrainSamples
from davit.data.transforms import TrainTransform
from davit.explain.drawing import enlarge, fit, picture
from davit.preprocessing import as_mode
from davit.train.build import build_images, build_preprocessing
from davit.train.recipe import Recipe

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
    training = build_images(recipe.data, recipe.runtime.seed).train
    preprocessing = build_preprocessing(recipe.data, None)
    samples = TrainSamples(training, TrainTransform(recipe.data.augmentation, preprocessing), recipe.runtime.seed)
    rows = []
    for index in choose(training, images, recipe.runtime.seed):
        original, label = training[index]
        seen = [samples[epoch, index].pixels for epoch in range(draws)]
        shown = [picture(pixels, preprocessing) for pixels in seen]
        rows.append((training.classes[label], [as_mode(original, recipe.data.channels), *shown]))
    return _sheet(rows, _title(recipe))


def choose(images: ClassifiedImages, count: int, seed: int) -> list[int]:
    """Pick images at random, of a class that was not picked yet as long as there is one."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
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
    size = recipe.data.image_size
    return f"{place} with {recipe.name} at {size}x{size}: as it is, then epochs 0, 1, ... of seed {recipe.runtime.seed}"


def _sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], title: str) -> Image.Image:
    columns = len(rows[0][1])
    width = 2 * MARGIN + columns * CELL + (columns - 2) * GAP + PAIR_GAP
    height = 2 * MARGIN + LINE + len(rows) * (CELL + LINE + GAP)
    sheet = Image.new("RGB", (width, height), GROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    draw.text((MARGIN, MARGIN - 4), _fitting(draw, font, title, width - 2 * MARGIN), FAINT, font)
    for row, (name, pictures) in enumerate(rows):
        top = MARGIN + LINE + row * (CELL + LINE + GAP)
        for column, image in enumerate(pictures):
            cell = enlarge(fit(image, CELL), CELL).convert("RGB")
            left = MARGIN + column * (CELL + GAP) + (PAIR_GAP - GAP if column else 0)
            sheet.paste(cell, (left + (CELL - cell.width) // 2, top + (CELL - cell.height) // 2))
        draw.text((MARGIN, top + CELL + 2), _fitting(draw, font, name, width - 2 * MARGIN), INK, font)
    return sheet


def _fitting(
    draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str, width: int
) -> str:
    """Shorten a text to a width; what the font cannot draw becomes a question mark."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"{text}...", font) > width:
        text = text[:-1]
    return f"{text}..."
