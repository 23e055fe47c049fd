"""What a check of data says."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        level: `error`: training or scores suffer; `warning`: look at it; `note`: it is handled, but know it.
        kind: a short name, the same for all findings of this sort.
        file: what it is about: a file, a folder or a class.
        message: one sentence.
    """

    level: Level
    kind: str
    file: str
    message: str


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """All findings, the gravest first.

    Attributes:
        root: what was checked.
        images: number of images in each part.
        findings: what was found.
    """

    root: str
    images: dict[str, int]
    findings: tuple[Finding, ...]

    @staticmethod
    def of(root: str, images: dict[str, int], findings: Sequence[Finding]) -> "CheckReport":
        """Sort findings by level, kind and file."""
        ordered = sorted(findings, key=lambda found: (LEVELS.index(found.level), found.kind, found.file))
        return CheckReport(root=root, images=images, findings=tuple(ordered))

    def count(self, level: Level) -> int:
        """Count the findings of a level."""
        return sum(found.level == level for found in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "root": self.root,
            "images": self.images,
            "levels": {level: self.count(level) for level in LEVELS},
            "kinds": dict(Counter(found.kind for found in self.findings)),
            "findings": [vars(found) for found in self.findings],
        }
