"""What a look at the machine says."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "warning", "problem"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "problem")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        level: `ok`; `warning`: something optional is missing or slow, and davit goes on without it; `problem`:
            something that davit promises does not work here.
        name: what was looked at.
        told: what was seen.
        remedy: what to do about it, where it is not ok.
    """

    level: Level
    name: str
    told: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def failed(name: str, error: BaseException, remedy: str = "") -> Check:
    """A check that ended with an error, told in one line."""
    words = " ".join(str(error).split())[:300]
    told = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return Check(level="problem", name=name, told=told, remedy=remedy)


def gibibytes(number: float) -> str:
    """Bytes for a reader."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} bytes"
