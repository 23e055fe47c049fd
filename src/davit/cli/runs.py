"""`davit runs`: run folders side by side."""

import json as json_format
import sys
from pathlib import Path
from typing import Annotated


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def runs(
        folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR...")] = (Path("runs"),),
        metric: Annotated[str, arg(metavar="NAME", help_behavior_hint="")] = "",
        out: Annotated[Path | None, arg(metavar="FILE")] = None,
        json: bool = False,
    ) -> int:
        """Compare runs: finished, running and stopped ones, best first.

        Args:
            folders: Run folders, or folders that hold some, however deep; by default runs.
            metric: What decides: a name in metrics.jsonl, by default the first there is of top1, box_ap and miou.
            out: Also write a page (.html) with table and curves, or a plot of the curves (.png).
            json: Print as JSON.
        """
        return _runs(folders, metric, out, as_json=json)

    return tyro.cli(runs, prog="davit runs", args=arguments, config=(FlagCreatePairsOff,))


def _runs(folders: tuple[Path, ...], metric: str, out: Path | None, *, as_json: bool) -> int:
    from davit.explain.compare_runs import compare, settings_lines, table, write_comparison
    from davit.explain.tables import aligned

    comparison = compare(folders, metric)
    if out:
        write_comparison(comparison, out)
        print(f"wrote {out}", file=sys.stderr)
    if as_json:
        print(json_format.dumps(comparison.to_json(), indent=2))
        return 0
    rows = table(comparison)
    print("\n".join(aligned(rows, left={1, 2, 3, len(rows[0]) - 1})))
    if lines := settings_lines(comparison):
        print("\nsettings that differ, with the runs that have them:")
        print("\n".join(f"  {line}" for line in lines))
    return 0
