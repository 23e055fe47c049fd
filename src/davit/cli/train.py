"""`davit train`: a recipe, a folder, and any fields to set otherwise."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from davit.train.recipe import Recipe


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro

    def train(
        recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
        settings: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FIELD=VALUE...")] = (),
        /,
        *,
        out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
        fresh: bool = False,
        json: bool = False,
        fields: bool = False,
    ) -> int:
        """Train a recipe; the same command again goes on where it stopped.

        Args:
            recipe: What to run: digits or finetune.
            settings: Fields to set otherwise, such as data.root=DIR or schedule.epochs=50; --fields lists them.
            out: Run folder; by default runs/RECIPE.
            fresh: Start over; a run that is there is moved aside, not deleted.
            json: Print the final metrics as JSON.
            fields: List the recipe's fields with their values, and stop.
        """
        return _train(recipe, settings, out or Path("runs") / recipe, fresh=fresh, as_json=json, fields=fields)

    return tyro.cli(train, prog="davit train", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))


def _train(name: str, settings: tuple[str, ...], out: Path, *, fresh: bool, as_json: bool, fields: bool) -> int:
    import json

    from davit.explain.run_report import write_run_report
    from davit.records import field_paths
    from davit.train.run import run
    from davit.train.stop import TrainingStoppedError

    recipe = recipe_with(name, settings)
    if fields:
        for path in field_paths(recipe):
            print(f"{path}={_value(recipe, path)}")
        return 0
    if fresh:
        move_aside(out)
    try:
        result = run(recipe, out)
    except TrainingStoppedError as stopped:
        print(f"davit train: {stopped}", file=sys.stderr)
        return 143
    report = write_run_report(result)
    if as_json:
        print(json.dumps(result.metrics))
    else:
        print(f"top-1 {result.metrics['top1']:.2%} on {result.metrics['count']} images, {out}/model.safetensors")
        print(f"report: {report}")
    return 0


def recipe_with(name: str, settings: tuple[str, ...]) -> "Recipe":
    """Build a recipe and set fields; `model.variant` comes first, for the architecture's other fields follow it."""
    from davit.recipes import make_recipe
    from davit.records import assign

    pairs = []
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"{setting!r} is no setting: write field=value, such as schedule.epochs=10")
        pairs.append((path, text))
    variants = [text for path, text in pairs if path == "model.variant"]
    recipe = make_recipe(name, variants[-1] if variants else None)
    for path, text in pairs:
        if path != "model.variant":
            recipe = assign(recipe, path, text)
    return recipe


def move_aside(folder: Path) -> None:
    """Rename a run folder, so that a fresh start loses nothing."""
    if not folder.exists():
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(aside)
    print(f"moved the run that was in {folder} to {aside}", file=sys.stderr)


def _value(recipe: object, path: str) -> object:
    value = recipe
    for name in path.split("."):
        value = getattr(value, name)
    return ",".join(map(str, value)) if isinstance(value, tuple) else value
