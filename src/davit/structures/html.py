"""Results as a notebook shows them: HTML without scripts or style sheets, for light and dark pages.

Only styles inside tags are used, and colours that can be read on both grounds: notebooks drop what else a page has.
"""

from html import escape
from typing import TYPE_CHECKING

from davit.colours import class_colour, ink_on

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from davit.structures import Classification, Detections, Embedding, Segmentation

SIDE, THUMB = 480, 160  # most pixels of a side of a drawing, of a picture with nothing drawn on it
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
ROWS = 12  # of a table
SHOWN_FROM = 0.5  # the score of an object that is drawn
MOST_PIXELS = 64_000_000  # of a picture that is decoded to be drawn on
SHARE = 0.5  # of a class's colour over the picture
BAR = "#3b82c4"
NEGATIVE, POSITIVE = (59, 130, 196), (224, 114, 44)

# Notebooks bring their own rules for tables, which these override.
_TABLE = "border-collapse:collapse;border:0;margin:0;font-size:13px"
_CELL = "padding:2px 10px 2px 0;border:0;text-align:left;vertical-align:middle;background:none"
_QUIET = "opacity:.7;font-size:12px;padding-bottom:4px;overflow-wrap:anywhere"


def show_classification(found: "Classification") -> str:
    """A bar for each class, beside the picture where its file can be read."""
    picture = _picture(found.source, None, THUMB)
    rows = [_bar(label, score) for label, score in zip(found.labels[:ROWS], found.scores[:ROWS], strict=True)]
    return _page(found.source, _table(rows, len(found.labels)), _image(picture) if picture else None)


def show_detections(found: "Detections") -> str:
    """The objects in a table, and with their numbers on the picture, or on a blank one where there is no file."""
    from PIL import Image

    best = range(min(ROWS, len(found.labels)))
    scores, boxes = found.scores.tolist(), found.boxes.tolist()
    drawn = [row for row in best if scores[row] >= SHOWN_FROM]
    picture = _picture(found.source, found.size) or Image.new("RGB", _fitting(found.size), "#80868c")
    indices = found.indices.tolist()
    rows = [
        _cells(
            _swatch(class_colour(indices[row]), str(row + 1) if row in drawn else ""),
            _name(found.labels[row]),
            f"{scores[row]:.3f}",
            ", ".join(f"{edge:.0f}" for edge in boxes[row]),
        )
        for row in best
    ]
    table = _table(rows, len(found.labels), "no object", ("", "object", "score", "left, top, right, bottom"))
    if len(drawn) < len(rows):
        table += f'<div style="{_QUIET}">without a number: under {SHOWN_FROM}, not drawn</div>'
    return _page(found.source, table, _image(_draw_objects(picture, found, drawn)))


def show_segmentation(found: "Segmentation") -> str:
    """The class map over the picture, or alone where there is no file, beside the share of each class."""
    from PIL import Image

    height, width = found.classes.shape
    picture = _picture(found.source, (height, width))
    size = _fitting((height, width))
    classes = Image.fromarray(found.classes.numpy()).resize(size, Image.Resampling.NEAREST)
    colours = [class_colour(index) for index in range(255)] + [(128, 128, 128)]  # 255 stands for no class
    classes.putpalette([part for colour in colours for part in colour])
    drawn = classes.convert("RGB")
    if picture is not None:
        drawn = Image.blend(picture, drawn, SHARE)
    places = {name: index for index, name in enumerate(found.names)}
    shares = found.shares()
    rows = [_bar(name, share, class_colour(places[name])) for name, share in list(shares.items())[:ROWS]]
    return _page(found.source, _table(rows, len(shares)), _image(drawn))


def show_embedding(found: "Embedding") -> str:
    """The numbers as a strip, from left to right: blue below zero, orange above, the stronger the further from it."""
    from PIL import Image

    values = found.vector.detach().float().cpu().reshape(-1).tolist()
    largest = max((abs(value) for value in values if abs(value) < float("inf")), default=0.0) or 1.0
    strip = Image.new("RGBA", (max(1, len(values)), 1))
    strip.putdata([_signed(value / largest) for value in values])
    told = f"a vector of {len(values)} numbers between {min(values, default=0):.3f} and {max(values, default=0):.3f}"
    drawn = f'<img src="{_uri(strip)}" alt="{told}" style="width:100%;max-width:{SIDE}px;height:24px;'
    drawn += 'image-rendering:pixelated;border:1px solid rgba(128,128,128,.5)">'
    return _page(found.source, f'<div style="{_QUIET}">{told}</div>', drawn, beside=False)


def _page(source: str | None, table: str, drawing: str | None, beside: bool = True) -> str:
    """Put the parts of an answer together; on a narrow page they stand below each other."""
    name = f'<div style="{_QUIET}">{_text(source)}</div>' if source else ""
    layout = "display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start" if beside else ""
    return f'<div>{name}<div style="{layout}">{drawing or ""}{table}</div></div>'


def _table(rows: "Sequence[str]", count: int, none: str = "no class", heads: "Sequence[str]" = ()) -> str:
    if not rows:
        return f'<div style="{_QUIET}">{none}</div>'
    head = "".join(f'<th style="{_CELL};font-weight:normal;opacity:.7">{text}</th>' for text in heads)
    left = f'<div style="{_QUIET}">and {count - len(rows):,} more</div>' if count > len(rows) else ""
    body = (f"<tr>{head}</tr>" if head else "") + "".join(rows)
    return f'<div><table style="{_TABLE}"><tbody>{body}</tbody></table>{left}</div>'


def _cells(*cells: str) -> str:
    return "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"


def _bar(name: str, share: float, colour: tuple[int, int, int] | None = None) -> str:
    """A row: name, bar, per cent."""
    ink = "#{:02x}{:02x}{:02x}".format(*colour) if colour else BAR
    width = 100 * share if share == share else 0.0  # NaN has no length
    bar = (
        '<div style="width:120px;height:10px;background:rgba(128,128,128,.25)">'
        f'<div style="width:{min(100.0, max(0.0, width)):.1f}%;height:10px;background:{ink}"></div></div>'
    )
    return _cells(_name(name), bar, f"{100 * share:.1f}%")


def _swatch(colour: tuple[int, int, int], text: str) -> str:
    ink, ground = ink_on(colour), "#{:02x}{:02x}{:02x}".format(*colour)
    style = (
        f"display:inline-block;min-width:18px;height:18px;line-height:18px;text-align:center;font-size:11px;color:{ink}"
    )
    return f'<span style="{style};background:{ground}">{text}</span>'


def _name(text: str) -> str:
    """A name that breaks anywhere rather than hang over a narrow page."""
    return f'<span style="overflow-wrap:anywhere">{_text(text)}</span>'


def _text(text: str) -> str:
    """Text that can neither be markup nor turn the line around."""
    return escape("".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text))


def _signed(value: float) -> tuple[int, int, int, int]:
    """Nothing at 0, the full colour at 1 and -1; grey for what is no finite number."""
    if not abs(value) <= 1:
        return (128, 128, 128, 255)
    red, green, blue = POSITIVE if value > 0 else NEGATIVE
    return red, green, blue, round(255 * abs(value))


def _fitting(size: tuple[int, int], side: int = SIDE) -> tuple[int, int]:
    """Width and height of a drawing of a picture of height and width `size`."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[1] * scale)), max(1, round(size[0] * scale))


def _picture(source: str | None, size: tuple[int, int] | None, side: int = SIDE) -> "Image.Image | None":
    """Read the picture at drawing size; None where it is gone, damaged, or not of the height and width `size`."""
    if source is None:
        return None
    from PIL import Image, ImageOps

    try:
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS or image.mode[0] in "IF":
                return None
            turned = image.getexif().get(0x0112, 1) >= 5  # on its side
            shown = (image.width, image.height) if turned else (image.height, image.width)
            if size is not None and shown != tuple(size):
                return None  # another picture by now
            drawn = _fitting(shown, side)
            image.draft("RGB", (2 * max(drawn), 2 * max(drawn)))  # a JPEG is decoded at a fraction of its size
            picture = ImageOps.exif_transpose(image).convert("RGBA").resize(drawn, Image.Resampling.BILINEAR)
    except Exception:  # on damaged bytes Pillow raises nearly every type there is; the answer stands without a picture
        return None
    return Image.alpha_composite(Image.new("RGBA", drawn, "white"), picture).convert("RGB")


def _draw_objects(picture: "Image.Image", found: "Detections", drawn: "Sequence[int]") -> "Image.Image":
    """Draw masks, boxes and the numbers of the table, the best on top."""
    from PIL import Image, ImageDraw, ImageFont

    scale = picture.width / found.size[1], picture.height / found.size[0]
    colours, boxes = [class_colour(index) for index in found.indices.tolist()], found.boxes.tolist()
    for row in reversed(drawn):
        if found.masks is not None:
            mask = Image.fromarray(found.masks[row].numpy()).convert("L").resize(picture.size)
            picture.paste(colours[row], mask=mask.point(lambda value: value * SHARE))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for row in reversed(drawn):
        left, top, right, bottom = (edge * scale[side % 2] for side, edge in enumerate(boxes[row]))
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colours[row], width=2)
    for row in reversed(drawn):  # after all boxes, so that no line crosses a number
        corner = (min(max(0.0, boxes[row][0] * scale[0]), picture.width - 16), max(0.0, boxes[row][1] * scale[1]))
        draw.rectangle((*corner, corner[0] + 15, corner[1] + 14), fill=colours[row])
        draw.text((corner[0] + 8, corner[1] + 7), str(row + 1), ink_on(colours[row]), font, anchor="mm")
    return picture


def _image(picture: "Image.Image") -> str:
    """An `img` that holds the picture, not wider than the page."""
    return f'<img src="{_uri(picture)}" width="{picture.width}" alt="" style="max-width:100%;height:auto;margin:0">'


def _uri(picture: "Image.Image") -> str:
    import base64
    import io

    buffer = io.BytesIO()
    kind = "jpeg" if picture.mode == "RGB" and picture.getcolors() is None else "png"  # none: more than 256
    picture.save(buffer, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
