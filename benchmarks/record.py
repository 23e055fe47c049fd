"""Where the scripts beside this one put what they measured."""

import json
from pathlib import Path
from typing import Any

from davit.train.run import environment


def write_record(report: dict[str, Any], out: Path | None, *, show: bool = False) -> None:
    """Write a report with the machine and versions it was made with, where a file is asked for; `show` prints it."""
    text = json.dumps({"environment": environment(), **report}, indent=1)
    if show:
        print(text)
    if out:
        out.write_text(text + "\n")
