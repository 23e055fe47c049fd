"""`davit demo`: the whole way in a minute, from digits to a page."""

import sys
from pathlib import Path
from typing import Annotated


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro

    def demo(*, out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/demo"), json: bool = False) -> int:
        """Train on real handwritten digits, then write a page that shows what was learned.

        Args:
            out: Folder for the checkpoint, metrics.json and report.html; a demo that is there is moved aside.
            json: Print the metrics as JSON.
        """
        return _demo(out, as_json=json)

    return tyro.cli(demo, prog="davit demo", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))


def _demo(out: Path, *, as_json: bool) -> int:
    import json

    from davit.cli.train import move_aside
    from davit.explain.run_report import write_run_report
    from davit.recipes import make_recipe
    from davit.train.run import claim, run
    from davit.train.stop import TrainingStoppedError

    recipe = make_recipe("digits")
    try:
        claim(out, recipe)
        finished = (out / "metrics.json").exists()
    except ValueError:
        finished = True
    if finished:
        move_aside(out)
    try:
        result = run(recipe, out)
    except TrainingStoppedError as stopped:
        print(f"davit demo: {stopped}", file=sys.stderr)
        return 143
    if result is None:  # not the first of several processes
        return 0
    report = write_run_report(result)
    metrics = result.metrics
    if as_json:
        print(json.dumps(metrics))
        return 0
    print(f"\nlearned {len(result.model.classes)} digits in {metrics['seconds']:.0f} s")
    print(f"test accuracy {metrics['top1']:.2%} on {metrics['count']} digits it never saw")
    print(f"checkpoint {out / 'model.safetensors'}")
    print(f"open       {report.resolve().as_uri()}")
    return 0
