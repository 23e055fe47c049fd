"""`davit doctor`: does davit work here, and what is missing."""

import json as json_format
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from davit.inference.doctor.check import Check

_HELP = """Look at everything that davit stands on: versions, processor, graphics cards, cache folder, picture formats,
the native engine, one image through a small model beside float64, and the extras. Each line is ok, a warning (something
optional is missing, and davit goes on without it) or a problem (something that davit promises does not work), with the
way out. Nothing is sent or fetched.

The exit code is 0 without problems, and 1 with some.

  davit doctor
  davit doctor native model
  davit doctor --json > doctor.json
"""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    try:
        import tyro
        from tyro.conf import FlagCreatePairsOff, Positional, arg
    except Exception:  # the doctor comes without what others need
        return _doctor([word for word in arguments if word[0] != "-"], as_json="--json" in arguments)

    def doctor(
        topics: Annotated[Positional[tuple[str, ...]], arg(metavar="TOPIC...", help_behavior_hint="")] = (),
        json: bool = False,
    ) -> int:
        """Look.

        Args:
            topics: What to look at: versions, machine, graphics, cache, pictures, native, model or extras; by default
                all.
            json: Print as JSON.
        """
        return _doctor(topics, as_json=json)

    return tyro.cli(doctor, prog="davit doctor", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def _doctor(topics: Sequence[str], *, as_json: bool) -> int:
    from davit.inference.doctor.check import LEVELS
    from davit.inference.doctor.examine import TOPICS, examine
    from davit.naming import unknown_name

    for topic in topics:
        if topic not in TOPICS:
            raise unknown_name("topic", topic, TOPICS)
    chosen = [topic for topic in TOPICS if topic in topics or not topics]
    found: list[tuple[str, Check]] = []
    for topic, checks in examine(chosen):
        found += [(topic, check) for check in checks]
        if not as_json:
            print("\n".join([topic, *(line for check in checks for line in _lines(check))]), flush=True)
    counts = {level: sum(check.level == level for _, check in found) for level in LEVELS}
    works = counts["problem"] == 0
    if as_json:
        checks = [{"topic": topic, **check.to_json()} for topic, check in found]
        print(json_format.dumps({"works": works, "counts": counts, "checks": checks}, indent=2))
    else:
        told = ", ".join(f"{counts[level]} {level}{'s' * (counts[level] != 1 and level != 'ok')}" for level in LEVELS)
        print(f"\n{'davit works here' if works else 'not all of davit works here'}: {told}")
    return 0 if works else 1


def _lines(check: "Check") -> list[str]:
    """A check in the columns of the answer, broken to the width of the terminal."""
    width = max(60, shutil.get_terminal_size((120, 24)).columns)
    lines = textwrap.wrap(check.told, width - 28, break_on_hyphens=False) or [""]
    if check.remedy:
        lines += textwrap.wrap(f"-> {check.remedy}", width - 28, subsequent_indent="   ", break_on_hyphens=False)
    head = f"  {check.level:<8} {check.name:<16} "
    encoding = sys.stdout.encoding or "utf-8"
    whole = [head + lines[0], *(" " * len(head) + line for line in lines[1:])]
    return [line.encode(encoding, "backslashreplace").decode(encoding) for line in whole]
