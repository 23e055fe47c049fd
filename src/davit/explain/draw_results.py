"""Results drawn on their pictures: boxes and masks with names and scores, maps of classes with a legend."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from davit.colours import class_colour, ink_on
from davit.models.segmenter_config import IGNORED
from davit.structures import Detections, Instances, Segmentation

MASK_SHARE = 0.45  # of the colour, over the picture
MAP_SHARE = 0.6
BESIDE = "#ffffff"
GREY = (128, 128, 128)  # of pixels whose class does not count


def draw_detections(
    picture: Image.Image, found: Detections, threshold: float = 0.5, *, scores: bool = True
) -> Image.Image:
    """Draw the objects that score at least `threshold`, the best on top, each class in its colour."""
    shown = [index for index, score in enumerate(found.scores.tolist()) if score >= threshold][::-1]
    colours = [class_colour(index) for index in found.indices.tolist()]
    values = np.asarray(picture.convert("RGB")).astype(np.float32)
    if found.masks is not None:
        for index in shown:
            inside = found.masks[index].numpy()
            values[inside] += MASK_SHARE * (np.array(colours[index], np.float32) - values[inside])
    image = Image.fromarray(values.round().astype(np.uint8))
    draw = ImageDraw.Draw(image)
    line = max(1, round(min(image.size) / 240))
    for index in shown:
        draw.rectangle(found.boxes[index].tolist(), outline=colours[index], width=line)
    for index in shown:  # after all boxes, so that no line crosses a name
        left, top, _, _ = found.boxes[index].tolist()
        score = f" {found.scores[index]:.2f}" if scores else ""
        _label(draw, (left, top), found.labels[index] + score, colours[index])
    return image


def draw_segmentation(picture: Image.Image, found: Segmentation, names: int = 12) -> Image.Image:
    """Lay the colours of the classes over a picture, and name those that cover most beside it."""
    colours = np.array([class_colour(index) for index in range(IGNORED)] + [GREY], np.float32)
    values = np.asarray(picture.convert("RGB")).astype(np.float32)
    values += MAP_SHARE * (colours[found.classes.numpy()] - values)
    image = Image.fromarray(values.round().astype(np.uint8))
    shares = list(found.shares().items())[:names]
    places = {name: index for index, name in enumerate(found.names)}
    return _with_legend(image, [(f"{name} {share:.0%}", class_colour(places[name])) for name, share in shares])


def draw_truth(picture: Image.Image, known: object, classes: Sequence[str]) -> Image.Image:
    """Draw what is known of a picture: instances, or class indices of its pixels; a class alone leaves it as it is."""
    if isinstance(known, Instances):
        found = Detections(
            boxes=known.boxes,
            scores=torch.ones(len(known.boxes)),
            indices=known.labels,
            labels=tuple(classes[index] for index in known.labels.tolist()),
            size=(picture.height, picture.width),
            masks=known.masks,
        )
        return draw_detections(picture, found, scores=False)
    if isinstance(known, (np.ndarray, torch.Tensor)):
        indices = torch.as_tensor(known).to(torch.uint8)
        return draw_segmentation(picture, Segmentation(classes=indices, names=tuple(classes)))
    return picture


def _with_legend(image: Image.Image, lines: Sequence[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    size = max(11, min(22, round(min(image.size) / 28)))
    font = ImageFont.load_default(size)
    width = round(max((font.getlength(text) for text, _ in lines), default=0)) + 3 * size
    sheet = Image.new("RGB", (image.width + width, max(image.height, round(1.5 * size * len(lines)) + size)), BESIDE)
    sheet.paste(image, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for row, (text, colour) in enumerate(lines):
        left, top = image.width + size // 2, size // 2 + round(1.5 * size * row)
        draw.rectangle((left, top, left + size, top + size), fill=colour)
        draw.text((left + round(1.5 * size), top + size // 2), text, "#1a1a1a", font, anchor="lm")
    return sheet


def _label(draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, colour: tuple[int, int, int]) -> None:
    """Write above a box, or inside it where there is no room above."""
    width, height = draw.im.size
    size = max(9, min(20, round(min(width, height) / 32)))
    font = ImageFont.load_default(size)
    wide = font.getlength(text) + size * 0.6
    left = max(0.0, min(corner[0], width - wide))
    top = corner[1] - size * 1.3 if corner[1] >= size * 1.3 else corner[1]
    draw.rectangle((left, top, left + wide, top + size * 1.3), fill=colour)
    draw.text((left + size * 0.3, top + size * 0.65), text, ink_on(colour), font, anchor="lm")
