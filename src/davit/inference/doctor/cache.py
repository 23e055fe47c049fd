"""The user's cache folder: whether it can be written, what it holds, how much room there is."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from davit.inference.backends.native.build import cache_folder
from davit.inference.doctor.check import Check, gibibytes

LEAST_ROOM = 1 << 30  # an engine takes little, public weights up to some GiB
REMEDY = "name a folder that can be written in the variable XDG_CACHE_HOME"


def check_cache() -> Iterator[Check]:
    """Engines, text matrices, remembered choices; and where downloaded weights lie."""
    folder = cache_folder().parent
    yield _folder("cache", folder, "what is kept there is made anew each time", REMEDY)
    yield _contents(folder)
    yield _choices(folder / "backends.json")
    yield _weights()


def writable(folder: Path) -> OSError | None:
    """Why nothing can be written to a folder, or made where it is not there yet; None if it can."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        return error


def _folder(name: str, folder: Path, loss: str, remedy: str) -> Check:
    if error := writable(folder):
        told = f"{folder} cannot be written ({error.strerror or error}): {loss}"
        return Check(level="warning", name=name, told=told, remedy=remedy)
    there = next(place for place in (folder, *folder.parents) if place.exists())
    room = shutil.disk_usage(there).free
    told = f"{folder}, {gibibytes(room)} free"
    if room < LEAST_ROOM:
        return Check(level="warning", name=name, told=told, remedy=f"free some room, or {remedy}")
    return Check(level="ok", name=name, told=told)


def _contents(folder: Path) -> Check:
    native, texts = _size((folder / "native").glob("*.so")), _size((folder / "texts").glob("*.f32"))
    left = _size(folder.rglob(".*.tmp"))
    kinds = (("builds of the native engine", native), ("text matrices", texts), ("broken-off writes", left))
    told = ", ".join(f"{what}: {count} ({gibibytes(size)})" for what, (count, size) in kinds)
    return Check(level="ok", name="kept", told=f"{told}; all may be deleted at any time")


def _size(paths: Iterable[Path]) -> tuple[int, int]:
    """Number and bytes of files; one that goes meanwhile does not count."""
    sizes = []
    for path in paths:
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue
    return len(sizes), sum(sizes)


def _choices(path: Path) -> Check:
    """The backends that were measured."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Check(level="ok", name="choices", told="no backend was measured yet")
    except NotADirectoryError:
        return Check(level="ok", name="choices", told="none, for there is no such folder")
    except (OSError, ValueError) as error:
        told = f"{path} cannot be read ({error}); backends are measured anew"
        return Check(level="warning", name="choices", told=told, remedy=f"delete {path}")
    count = len(known) if isinstance(known, dict) else 0
    return Check(level="ok", name="choices", told=f"{count} remembered choices of a backend")


def _weights() -> Check:
    """Where `huggingface_hub` keeps what is downloaded."""
    from huggingface_hub import constants

    remedy = "name a folder that can be written in the variable HF_HOME"
    return _folder("weights", Path(constants.HF_HUB_CACHE), "public weights cannot be downloaded", remedy)
