"""`davit benchmark`: how fast things are here."""

from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

from davit.cpus import usual_workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from davit.data.timing import LoaderTimes
    from davit.train.recipe import Recipe

_HELP = """Measure how fast images are loaded: each stage in one process, and the whole loader.

  davit benchmark data flowers
  davit benchmark data imagenet-shards finetune data.image_size=384 --workers 8
  davit benchmark data coco

Training waits for data where the loader gives fewer images per second than the model takes.
"""


VERBS = {
    "data": "how fast images are loaded",
    "models": "how fast models compute, by each backend",
}


def main(arguments: list[str]) -> int:
    """Run one verb of this verb."""
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = ["usage: davit benchmark VERB [options]", "", "How fast things are here.", "", "verbs:"]
        lines += [f"  {verb:<6} {text}" for verb, text in VERBS.items()]
        print("\n".join([*lines, "", "davit benchmark VERB --help tells more."]))
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb == "data":
        return _data(rest)
    if verb == "models":
        from davit.cli.benchmark_models import main as models

        return models(rest)
    from davit.naming import unknown_name

    raise unknown_name("verb of benchmark", verb, VERBS)


def _data(arguments: list[str]) -> int:
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def data(
        root: Annotated[Positional[str], arg(metavar="DIR")],
        settings: Annotated[Positional[tuple[str, ...]], arg(metavar="[RECIPE] FIELD=VALUE...")] = (),
        /,
        *,
        images: Annotated[int, arg(metavar="N")] = 1024,
        workers: Annotated[int | None, arg(metavar="N")] = None,
        json: bool = False,
    ) -> int:
        """Measure loading.

        Args:
            root: Class folders, train/ and val/ with them, shards (a URL too), COCO's layout, or pictures and index
                masks.
            settings: A recipe, by default the usual one for such images, and fields to set otherwise, as for `davit
                train`.
            images: Images to load, once stage by stage and once through the loader.
            workers: Processes of the loader; by default one per CPU, 8 at most.
            json: Print the result as JSON.
        """
        times = _measure(root, settings, images, usual_workers() if workers is None else workers)
        report = {"data": root, **times.to_json()}
        print(dumps(report, indent=2) if json else _table(report))
        return 0

    return tyro.cli(data, prog="davit benchmark data", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def _measure(root: str, settings: tuple[str, ...], images: int, workers: int) -> "LoaderTimes":
    from davit.cli.data_show import recipe_on
    from davit.cli.progress import Progress
    from davit.tasks.classification import ClassificationConfig

    if workers < 0:
        raise ValueError(f"--workers must be at least 0, got {workers}")
    recipe = recipe_on(root, settings)
    batch = min(recipe.data.batch_size, max(1, images // 4))  # so that some batches are measured
    measured = _labelled if isinstance(recipe.task, ClassificationConfig) else _annotated
    time_them = measured(recipe, root)
    with Progress("loading", "images", 2 * (images // batch) * batch) as progress:
        return time_them(count=images, batch_size=batch, workers=workers, progress=progress)


def _labelled(recipe: "Recipe", root: str) -> "Callable[..., LoaderTimes]":
    from functools import partial

    from davit.data.images import find_images
    from davit.data.timing import time_loading
    from davit.data.transforms import TrainTransform
    from davit.train.build import build_preprocessing

    source = find_images(root)
    training = source.open("train" if "train" in source.parts else source.validation)
    _, augmentation = recipe.classification("davit benchmark data")
    transform = TrainTransform(augmentation, build_preprocessing(recipe.data, None))
    return partial(time_loading, training, transform, seed=recipe.runtime.seed)


def _annotated(recipe: "Recipe", _: str) -> "Callable[..., LoaderTimes]":
    from functools import partial

    from davit.data.timing import time_dense_loading
    from davit.train.build import build_preprocessing
    from davit.train.sides import list_images, train_samples

    images = list_images(recipe)
    samples = train_samples(recipe, build_preprocessing(recipe.data, None), images)
    return partial(time_dense_loading, samples, len(images.train))


def _table(report: dict[str, Any]) -> str:
    loader = report["loader"]
    lines = [f"{report['data']}, {report['images']} images, in images per second", ""]
    for stage, rate in report["images_per_second"].items():
        lines.append(f"  {stage:<10} {rate:>10,.1f}   {100 * report['share'][stage]:5.1f} % of the time")
    lines.append(f"  {'together':<10} {report['one_process']:>10,.1f}   one process")
    started = f"{loader['workers']} processes, {loader['start_seconds']:.1f} s to the first batch"
    lines.append(f"  {'loader':<10} {loader['images_per_second']:>10,.1f}   {started}")
    if report["broken"]:
        lines += ["", f"{report['broken']} images could not be decoded: davit data check {report['data']}"]
    return "\n".join(lines)
