"""What a search found, drawn: each query, and the pictures or texts beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from davit.decoding import ImageError, read_image
from davit.explain.contact_sheet import FAINT, GROUND, INK, MARGIN, fitting
from davit.explain.drawing import enlarge, fit

CELL = 160  # pixels
GAP, LINE = 8, 18
COLUMNS = 6


def draw_hits(entries: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Draw queries one below the other, each above its hits, best first.

    Args:
        entries: as `davit search --json` prints them: query, kind, and hits with a score and a file or a text.
    """
    blocks = [_block(entry) for entry in entries]
    width = 2 * MARGIN + COLUMNS * (CELL + GAP) - GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + sum(block.height + GAP for block in blocks) - GAP), GROUND)
    top = MARGIN
    for block in blocks:
        sheet.paste(block, (MARGIN, top))
        top += block.height + GAP
    return sheet


def _block(entry: Mapping[str, Any]) -> Image.Image:
    hits = entry["hits"]
    rows = -(-len(hits) // COLUMNS)
    head = CELL + LINE if entry["kind"] == "image" else LINE
    width = COLUMNS * (CELL + GAP) - GAP
    block = Image.new("RGB", (width, head + GAP + rows * (CELL + 2 * LINE + GAP)), GROUND)
    draw, font, large = ImageDraw.Draw(block), ImageFont.load_default(12), ImageFont.load_default(15)
    draw.text((0, 0), fitting(draw, large, entry["query"], width), INK, large)
    if entry["kind"] == "image":
        _paste(block, entry["query"], (0, LINE))
    for number, hit in enumerate(hits):
        left, top = number % COLUMNS * (CELL + GAP), head + GAP + number // COLUMNS * (CELL + 2 * LINE + GAP)
        name = hit.get("file") or hit["text"]
        if "file" in hit:
            _paste(block, name, (left, top))
        else:
            _write(draw, font, name, (left, top))
        draw.text((left, top + CELL + 2), f"{number + 1}.  {hit['score']:+.3f}", INK, font)
        if "file" in hit:
            draw.text((left, top + CELL + 2 + LINE), fitting(draw, font, name.rsplit("/", 1)[-1], CELL), FAINT, font)
    return block


def _paste(block: Image.Image, path: str, place: tuple[int, int]) -> None:
    """Put a picture into its cell; one that is gone since leaves a note."""
    try:
        cell = enlarge(fit(read_image(path), CELL), CELL).convert("RGB")
    except (ImageError, OSError):
        ImageDraw.Draw(block).text(place, "not there any more", FAINT, ImageFont.load_default(12))
        return
    block.paste(cell, (place[0], place[1] + (CELL - cell.height) // 2))


def _write(draw: ImageDraw.ImageDraw, font: Any, text: str, place: tuple[int, int]) -> None:
    """A text in its cell, in as many lines as fit."""
    lines, line = list[str](), ""
    for word in text.split():
        if line and draw.textlength(f"{line} {word}", font) > CELL:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    for number, part in enumerate([*lines, line][: CELL // LINE]):
        draw.text((place[0], place[1] + number * LINE), fitting(draw, font, part, CELL), INK, font)
