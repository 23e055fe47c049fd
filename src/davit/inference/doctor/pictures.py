"""Which picture formats can be read here."""

import base64
from collections.abc import Iterator
from io import BytesIO

from davit.inference.doctor.check import Check, failed

_NEEDED = ("JPEG", "PNG")
_COLOUR = (200, 40, 90)
# Of formats that some builds of Pillow read but do not write, a picture of 16 x 16 in that colour.
_WRITTEN = {
    "AVIF": "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUIAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAAAA"
    "AAAOcGl0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAAJwAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEAAGF2MDFDb2xv"
    "cgAAAABqaXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAAEAAAABAAAAAQcGl4aQAAAAADCAgIAAAADGF2MUOBAAwAAAAAE2NvbHJuY2x4AAEA"
    "DQAGgAAAABdpcG1hAAAAAAAAAAEAAQQBAoMEAAAAL21kYXQSAAoJGAz/2iAhoNCAMhgZR4eGIYeeeeaAAAB1hk3a5lihcupnsUA=",
    "WEBP": "UklGRjAAAABXRUJQVlA4ICQAAABQAQCdASoQABAAAsBMJaAABAAAAP7qZWz///M0f/JH/sD1UAA=",
}


def check_pictures() -> Iterator[Check]:
    """Read a picture of each format that davit knows."""
    from PIL import __version__

    from davit.decoding import FORMATS

    read: list[str] = []
    remedy = "pip install --upgrade --force-reinstall pillow, whose wheels have all formats"
    for name in FORMATS:
        try:
            difference = _difference(name)
        except Exception as error:
            fault = failed(name, error, remedy)
            level = fault.level if name in _NEEDED else "warning"
            yield Check(level=level, name=name, told=f"cannot be read here ({fault.told})", remedy=remedy)
            continue
        if difference > 24:
            yield Check(level="problem", name=name, told=f"colours are wrong by {difference} of 255", remedy=remedy)
        else:
            read.append(name)
    yield Check(level="ok", name="formats", told=f"Pillow {__version__} reads {', '.join(read) or 'none'}")


def _difference(name: str) -> int:
    """How far the colour of a picture of this format comes out from what it is, of 255."""
    from davit.decoding import read_image

    picture = read_image(base64.b64decode(_WRITTEN[name]) if name in _WRITTEN else _encoded(name))
    extremes = picture.convert("RGB").getextrema()
    ends = [end for band in extremes for end in (band if isinstance(band, tuple) else (band,))]
    wanted = [part for part in _COLOUR for _ in range(2)]
    return max(round(abs(end - part)) for end, part in zip(ends, wanted, strict=True))


def _encoded(name: str) -> bytes:
    from PIL import Image

    stream = BytesIO()
    compression = {"compression": "tiff_lzw"} if name == "TIFF" else {}  # needs libtiff, which most files do
    Image.new("RGB", (16, 16), _COLOUR).save(stream, name, **compression)
    return stream.getvalue()
