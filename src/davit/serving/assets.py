"""The page at `/`: its files, by the paths they are asked for under."""

from importlib.resources import files
from pathlib import PurePath

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


def page_files(drawing: str) -> dict[str, tuple[bytes, str]]:
    """Contents and media types, by path.

    Args:
        drawing: the JavaScript module that draws explanations, `/explorer_draw.js`; empty where none are given.
    """
    found = {"/explorer_draw.js": (drawing.encode(), _KINDS[".js"])} if drawing else {}
    for file in (files("davit.serving") / "page").iterdir():
        kind = _KINDS.get(PurePath(file.name).suffix)
        if kind:
            found["/" if file.name == "index.html" else f"/{file.name}"] = (file.read_bytes(), kind)
    return found
