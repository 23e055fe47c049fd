"""What this machine measured before: a file of JSON in the user's cache folder, which may be deleted at any time."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from davit.atomic import atomic_write


def read_remembered(path: Path) -> dict[str, Any]:
    """What is kept there; a file that cannot be read is as good as none."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def remember(path: Path, values: dict[str, Any]) -> None:
    """Keep values; a folder that cannot be written costs a measurement next time, nothing more."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(values, indent=1).encode())
