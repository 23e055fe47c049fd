"""`davit train`: a recipe, a folder, and any fields to set otherwise."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

if TYPE_CHECKING:
    from davit.train.recipe import Recipe

_UNSET = arg(help_behavior_hint="")  # "(default: None)" tells nobody anything


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a recipe; the same command again goes on where it stopped.

    Try:
      davit train digits
      davit train finetune data.root=flowers model.init=davit_tiny.msft_in1k
      davit train digits.detection
      davit train coco.mask_rcnn_1x data.root=coco
      davit train finetune data.root=flowers --lr-sweep 1e-4,3e-4,1e-3
      torchrun --nproc-per-node 8 -m davit train imagenet.davit_tiny data.root=imagenet

    The exit code is 0 after a finished run, 2 where settings, data or weights are unusable, and 143 after SIGTERM or
    Ctrl-C: the run was saved, and the same command goes on.

    Attributes:
        recipe: What to run; --list names them.
        settings: Fields to set otherwise, such as data.root=DIR or schedule.epochs=50; --fields lists them.
        out: Run folder; by default runs/RECIPE.
        fresh: Start over; a run that is there is moved aside, not deleted.
        json: Print the outcome as JSON.
        list: List the recipes, and stop.
        about: Tell where the recipe comes from, what it costs and what to expect, and stop.
        fields: List the recipe's fields with their values, and stop.
        lr_sweep: Try these learning rates in short runs under OUT/sweep, suggest one, and stop.
        sweep_epochs: Epochs of each of them; by default a tenth of the recipe's.
        dry_run: Tell memory, communication and time of the whole run without running it, and stop.
        world: Processes that --dry-run plans for; by default 1.
        tflops: Sustained 1e12 operations a second of one device, for --about and --dry-run; by default 64.
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE", help_behavior_hint="")] = ""
    settings: Annotated[Positional[tuple[str, ...]], arg(metavar="FIELD=VALUE...", help_behavior_hint="")] = ()
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    fresh: Annotated[bool, _UNSET] = False
    json: Annotated[bool, _UNSET] = False
    list: Annotated[bool, _UNSET] = False
    about: Annotated[bool, _UNSET] = False
    fields: Annotated[bool, _UNSET] = False
    lr_sweep: Annotated[str, arg(metavar="RATES", help_behavior_hint="")] = ""
    sweep_epochs: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    dry_run: Annotated[bool, _UNSET] = False
    world: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    tflops: Annotated[float | None, arg(metavar="T", help_behavior_hint="")] = None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / self.recipe


def main(arguments: "Sequence[str]") -> int:
    """Run the verb."""
    import tyro

    words = _options_first(arguments)
    options = tyro.cli(Options, prog="davit train", args=words, config=(FlagCreatePairsOff,))
    _check(options)
    if options.list:
        return _list(options)
    recipe = recipe_with(options.recipe, options.settings)
    if options.fields:
        return _fields(recipe, options)
    if options.about:
        return _about(recipe, options)
    if options.dry_run:
        return _dry_run(recipe, options)
    from davit.train.stop import TrainingStoppedError

    try:
        return _sweep(recipe, options) if options.lr_sweep else _train(recipe, options)
    except TrainingStoppedError as stopped:
        if _first():
            print(f"davit train: {stopped}", file=sys.stderr)
        return 143


def recipe_with(name: str, settings: "Sequence[str]") -> "Recipe":
    """Build a recipe and set fields; those come first that others follow from, in whatever order they are given.

    Raises:
        ValueError: no such recipe or field (the nearest are named), or a value that it refuses.
    """
    from davit.recipes import make_recipe
    from davit.recipes.start import Start
    from davit.records import assign, assign_all

    pairs = []
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"{setting!r} is no setting: write field=value, such as schedule.epochs=10")
        pairs.append((path, text))
    start = Start()
    for path, text in pairs:
        group, _, field = path.partition(".")
        if path in ("model.variant", "model.init", "data.batch_size"):
            start = assign(start, field, text, prefix=f"{group}.")
    recipe = make_recipe(name, start.variant, init=start.init, batch_size=start.batch_size)
    return assign_all(recipe, dict(pairs))


def move_aside(folder: Path) -> None:
    """Rename a run folder, so that a fresh start loses nothing."""
    if not folder.exists():
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(aside)
    print(f"moved the run that was in {folder} to {aside}", file=sys.stderr)


def _options_first(arguments: "Sequence[str]") -> list[str]:
    """Let settings stand before and behind options: the parser takes recipe and settings only in one piece."""
    flags = {f"--{field.name}".replace("_", "-") for field in fields(Options) if isinstance(field.default, bool)}
    options: list[str] = []
    positionals: list[str] = []
    valued = False
    for word in arguments:
        (options if valued or word.startswith("-") else positionals).append(word)
        valued = word.startswith("--") and "=" not in word and word.replace("_", "-") not in flags and not valued
    return [*options, *positionals]


def _check(options: Options) -> None:
    modes = {
        "--list": options.list,
        "--fields": options.fields,
        "--about": options.about,
        "--dry-run": options.dry_run,
        "--lr-sweep": bool(options.lr_sweep),
    }
    asked = [name for name, on in modes.items() if on]
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)} exclude each other: choose one")
    if not options.recipe and not options.list:
        raise ValueError("say which recipe to run: davit train --list names them")
    if options.sweep_epochs is not None and not options.lr_sweep:
        raise ValueError("--sweep-epochs goes with --lr-sweep")
    if options.world is not None and not options.dry_run:
        raise ValueError("--world goes with --dry-run; to run several processes, start this command by torchrun")
    if options.tflops is not None and not (options.dry_run or options.about):
        raise ValueError("--tflops goes with --dry-run or --about")
    if (options.world is not None and options.world < 1) or (options.tflops is not None and options.tflops <= 0):
        raise ValueError("--world must be at least 1, --tflops positive")


def _first() -> bool:
    """Whether this is the process that talks, among those that torchrun may have started."""
    return os.environ.get("RANK", "0") == "0"


def _train(recipe: "Recipe", options: Options) -> int:
    from davit.explain.run_report import write_run_report
    from davit.train.run import run

    if options.fresh and _first():
        move_aside(options.folder)
    if _first():
        _tell_rate(options)
    result = run(recipe, options.folder)
    if result is None:  # not the first of several processes
        return 0
    report = write_run_report(result)
    if options.json:
        _print_json(result.metrics)
    else:
        print(f"{told_scores(result.metrics)} on {result.metrics['count']} images, {options.folder}/model.safetensors")
        print(f"report: {report}")
    return 0


def told_scores(metrics: "Mapping[str, Any]") -> str:
    """The scores that count, of any task."""
    names = {"top1": "top-1", "box_ap": "box AP", "mask_ap": "mask AP", "miou": "mean IoU", "aacc": "pixel accuracy"}
    names |= {"image_to_text_r1": "image to text R@1", "text_to_image_r1": "text to image R@1"}
    return ", ".join(f"{name} {metrics[key]:.2%}" for key, name in names.items() if key in metrics)


def _tell_rate(options: Options) -> None:
    """Say it where a setting of the batch has moved the learning rate."""
    sized = [setting for setting in options.settings if setting.startswith("data.batch_size=")]
    rest = [setting for setting in options.settings if setting not in sized]
    now = recipe_with(options.recipe, options.settings).optimizer.learning_rate
    if sized and now != recipe_with(options.recipe, rest).optimizer.learning_rate:
        print(f"optimizer.learning_rate={now:g} follows {sized[-1]}", file=sys.stderr)


def _sweep(recipe: "Recipe", options: Options) -> int:
    from davit.train.sweep import draw, sweep

    folder = options.folder / "sweep"
    try:
        rates = [float(part) for part in options.lr_sweep.split(",")]
    except ValueError:
        raise ValueError(
            f"--lr-sweep takes rates divided by commas, such as 1e-4,3e-4,1e-3, got {options.lr_sweep!r}"
        ) from None
    if options.fresh and _first():
        move_aside(folder)
    found = sweep(recipe, rates, folder, options.sweep_epochs)
    if not _first():
        return 0
    if options.json:
        _print_json(found.to_json())
    else:
        print("\n".join(found.lines()))
    draw(found, folder / "sweep.png")
    print(f"plot: {folder / 'sweep.png'}", file=sys.stderr)
    return 0


def _dry_run(recipe: "Recipe", options: Options) -> int:
    from davit.train.dry_run import SUSTAINED_TFLOPS, report

    told = report(recipe, world=options.world or 1, tflops=options.tflops or SUSTAINED_TFLOPS)
    if options.json:
        _print_json(told.to_json())
    else:
        print("\n".join(told.lines()))
    return 0


def _list(options: Options) -> int:
    from davit.recipes import RECIPES, about_recipe, make_recipe

    told = [about_recipe(name).to_json(make_recipe(name)) for name in RECIPES]
    if options.json:
        _print_json(told)
        return 0
    print(f"{'recipe':<25} {'A100 hours':>10}  what")
    for row in told:
        hours = "" if row["measured"] or row["device_hours"] is None else f"{row['device_hours']:,.0f}"
        print(f"{row['name']:<25} {hours:>10}  {row['summary']}")
    print("\ndavit train RECIPE --about tells sources, arithmetic and expected score.")
    return 0


def _about(recipe: "Recipe", options: Options) -> int:
    from davit.recipes import about_recipe
    from davit.train.dry_run import SUSTAINED_TFLOPS

    told, tflops = about_recipe(options.recipe), options.tflops if options.tflops is not None else SUSTAINED_TFLOPS
    if options.json:
        _print_json(told.to_json(recipe, tflops))
    else:
        print("\n".join(told.lines(recipe, tflops)))
    return 0


def _fields(recipe: "Recipe", options: Options) -> int:
    from davit.records import field_paths, to_json

    if options.json:
        _print_json(to_json(recipe))
        return 0
    for path in field_paths(recipe):
        print(f"{path}={_value(recipe, path)}")
    return 0


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value))


def _value(recipe: object, path: str) -> object:
    value = recipe
    for name in path.split("."):
        value = getattr(value, name)
    return ",".join(map(str, value)) if isinstance(value, tuple) else value
