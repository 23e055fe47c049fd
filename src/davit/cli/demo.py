"""`davit demo`: the whole way while one waits, from digits to a page."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

if TYPE_CHECKING:
    from davit.train.run import RunResult

RECIPES = {"classification": "digits", "detection": "digits.detection", "segmentation": "digits.segmentation"}
RECIPES |= {"contrastive": "digits.contrastive"}


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro

    def demo(
        *,
        task: Literal["classification", "detection", "segmentation", "contrastive"] = "classification",
        out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None,
        json: bool = False,
    ) -> int:
        """Train on real handwritten digits, then write a page that shows what was learned.

        Args:
            task: Name single digits (a minute), or find them in scenes: boxes and masks, the class of each pixel, or
                the caption of each scene (ten to twenty minutes each on two CPU cores).
            out: Folder for the checkpoint, metrics.json and report.html, by default runs/demo or runs/demo-TASK; a demo
                that is there is moved aside.
            json: Print the metrics as JSON.
        """
        usual = "demo" if task == "classification" else f"demo-{task}"
        return _demo(RECIPES[task], out or Path("runs") / usual, as_json=json)

    return tyro.cli(demo, prog="davit demo", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))


def _demo(name: str, out: Path, *, as_json: bool) -> int:
    import json

    from davit.cli.train import move_aside
    from davit.explain.run_report import write_run_report
    from davit.recipes import make_recipe
    from davit.train.run import claim, run
    from davit.train.stop import TrainingStoppedError

    recipe = make_recipe(name)
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
    if as_json:
        print(json.dumps(result.metrics))
        return 0
    print("\n".join(["", *_told(result), f"open       {report.resolve().as_uri()}"]))
    return 0


def _told(result: "RunResult") -> list[str]:
    from davit.cli.train import told_scores

    metrics = result.metrics
    if "top1" in metrics:
        learned = f"learned {len(result.model.classes)} digits in {metrics['seconds']:.0f} s"
        score = f"test accuracy {metrics['top1']:.2%} on {metrics['count']} digits it never saw"
    else:
        learned = f"learned to find digits in {metrics['seconds']:.0f} s"
        score = f"{told_scores(metrics)} on {metrics['count']} scenes it never saw"
    return [learned, score, f"checkpoint {result.folder / 'model.safetensors'}"]
