"""COCO's JSON, entry by entry: as one tree, the file of train2017 would take gigabytes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECTIONS = ("images", "annotations", "categories")
_SPACE = re.compile(r"[ \t\n\r]*")


def entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every entry of the three lists of a COCO file, with the name of its list; only one is in memory at a time.

    Raises:
        ValueError: not JSON, or not such lists of objects.
        OSError: it cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        found = set()
        for section, entry in _walk(text):
            found.add(section)
            if entry is None:
                continue
            if not isinstance(entry, dict):
                raise ValueError(f"an entry of {section} is {json.dumps(entry)[:40]}, not an object")
            yield section, entry
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no COCO file: {error}") from error
    missing = [section for section in SECTIONS if section not in found]
    if missing:
        raise ValueError(f"{path} is no COCO file for detection: it has no list {' and no list '.join(missing)}")


def _walk(text: str) -> Iterator[tuple[str, Any]]:
    """Yield (section, None) where one begins, and (section, entry) for each entry."""
    decode = json.JSONDecoder().raw_decode
    place = _after(text, 0, "{")
    while text[place : place + 1] != "}":
        key, place = decode(text, place)
        place = _after(text, place, ":")
        if key in SECTIONS:
            yield key, None
            place = _after(text, place, "[")
            while text[place : place + 1] != "]":
                entry, place = decode(text, place)
                yield key, entry
                place = _next(text, place, "]")
            place = _end(text, place + 1)
        else:
            place = _end(text, decode(text, place)[1])
        place = _next(text, place, "}")
    if _end(text, place + 1) != len(text):
        raise json.JSONDecodeError("Extra data", text, place + 1)


def _end(text: str, place: int) -> int:
    space = _SPACE.match(text, place)
    assert space is not None  # it also matches nothing
    return space.end()


def _after(text: str, place: int, sign: str) -> int:
    place = _end(text, place)
    if text[place : place + 1] != sign:
        raise json.JSONDecodeError(f"Expecting {sign!r}", text, place)
    return _end(text, place + 1)


def _next(text: str, place: int, closing: str) -> int:
    """The place of the next entry, or of what closes the list."""
    place = _end(text, place)
    if text[place : place + 1] == closing:
        return place
    place = _after(text, place, ",")
    if text[place : place + 1] == closing:
        raise json.JSONDecodeError(f"Expecting an entry, not {closing!r}", text, place)
    return place
