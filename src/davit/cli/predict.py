"""`davit predict`: name what is in images, and where."""

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from davit.inference.backends import BackendName

if TYPE_CHECKING:
    from davit.cli.drawn import Drawer
    from davit.decoding import ImageError
    from davit.inference.results import Result

_HELP = """Name what is in images: classes, best first; with a detector objects and their places, with a segmenter the
share of each class. --save draws them.

Files that cannot be decoded are named on stderr while the others go on. The exit code is then 1, and 2 where nothing
could be begun.

  davit predict --model davit_tiny.msft_in1k cat.jpg
  davit predict --model detector.safetensors street.jpg --save drawn
  davit predict --model mine.safetensors photos 'more/*.webp' --top 1 --json
"""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def predict(
        paths: Annotated[Positional[tuple[str, ...]], arg(metavar="PATH...", help_behavior_hint="(required)")],
        *,
        model: Annotated[str, arg(metavar="MODEL")],
        top: Annotated[int, arg(metavar="N")] = 5,
        batch_size: Annotated[int, arg(metavar="N")] = 16,
        device: Annotated[str | None, arg(metavar="NAME")] = None,
        backend: BackendName = "eager",
        variant: Annotated[str | None, arg(metavar="NAME")] = None,
        threshold: Annotated[float, arg(metavar="SCORE")] = 0.5,
        save: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None,
        json: bool = False,
    ) -> int:
        """Predict.

        Args:
            paths: Images, folders (with all folders in them) or quoted patterns such as 'photos/**/*.jpg'.
            model: A checkpoint, a name of `davit models`, or a file of `davit export`.
            top: How many classes to name.
            batch_size: Images computed at once.
            device: cpu, cuda, cuda:1 and so on; by default the graphics card if there is one.
            backend: What computes a checkpoint: eager is PyTorch, native our engine for CPUs, auto the faster of both
                on this machine.
            variant: What MODEL is, where its tensors leave it open: a name of `davit models`.
            threshold: Objects that score less are neither told nor drawn.
            save: Draw objects and maps into this folder; with a detector also results.json, all objects in COCO's
                format, with a segmenter also index masks.
            json: Print one JSON list, with an entry for each image.
        """
        from davit.cli.drawn import Drawer
        from davit.inference.predictor import Predictor

        images = find_images(paths)
        predictor = Predictor.load(
            model, variant=variant, batch_size=batch_size, device=device, backend=backend, tell=_tell
        )
        if not 0 <= threshold <= 1:
            raise ValueError(f"--threshold must lie in 0 to 1, got {threshold}")
        drawer = Drawer(save, threshold, predictor.backend) if save else None
        return _run(predictor.stream(images, top), images, json, threshold, drawer)

    return tyro.cli(predict, prog="davit predict", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def _tell(choice: str) -> None:
    print(f"davit predict: {choice}", file=sys.stderr)


def find_images(paths: Sequence[str]) -> list[Path]:
    """List the files that paths, folders and patterns stand for, in the order given, each sorted inside.

    Raises:
        ValueError: no path at all, one that does not exist, or a folder or pattern without images.
    """
    if not paths:
        raise ValueError("name at least one image, folder or quoted pattern")
    return [image for path in paths for image in _expand(path)]


def _expand(path: str) -> list[Path]:
    if Path(path).is_dir():
        return _images_under(Path(path))
    if os.path.lexists(path):  # before patterns: names may hold brackets
        return [Path(path)]
    if not glob.has_magic(path):
        raise ValueError(f"{path}: no such file or folder")
    found = [Path(match) for match in sorted(glob.glob(path, recursive=True))]  # noqa: PTH207 - absolute patterns
    files = [match for match in found if match.is_file()]
    if not files:
        raise ValueError(f"{path}: no file matches this pattern")
    return files


def _images_under(folder: Path) -> list[Path]:
    from davit.decoding import SUFFIXES

    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # tells os.walk where to go on
        images = [name for name in files if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES]
        found += [Path(parent, name) for name in images]
    if not found:
        raise ValueError(
            f"{folder}: no images in this folder; their names must end in one of {' '.join(sorted(SUFFIXES))}"
        )
    return sorted(found)


def _run(
    results: "Iterator[Result | ImageError]",
    images: Sequence[Path],
    json: bool,
    threshold: float,
    drawer: "Drawer | None",
) -> int:
    from tqdm import tqdm

    from davit.decoding import ImageError, show_path
    from davit.structures import Detections

    failed = 0
    entry: dict[str, Any]
    writer = _JsonList() if json else None
    bar = tqdm(zip(images, results, strict=True), total=len(images), unit="image", disable=None, leave=False)
    try:
        for path, result in bar:
            if isinstance(result, ImageError):
                failed += 1
                tqdm.write(f"davit predict: {result}", file=sys.stderr)
                entry = {"file": str(path), "error": str(result)}
            else:
                result = result.above(threshold) if isinstance(result, Detections) else result
                entry = result.to_json()
                if drawer:
                    drawer.draw(path, result)
            if writer:
                writer.add(entry)
            elif not isinstance(result, ImageError):
                tqdm.write(_printable(f"{show_path(path)}: {_told(result)}"), file=sys.stdout)
            sys.stdout.flush()
    finally:
        bar.close()
        if writer:
            writer.close()
        if drawer:
            drawer.close()
    return 1 if failed else 0


def _told(result: "Result") -> str:
    from davit.structures import Classification, Detections

    if isinstance(result, Detections):
        found = zip(result.labels, result.scores.tolist(), result.boxes.round().int().tolist(), strict=True)
        return "; ".join(f"{label} {100 * score:.1f}% at {','.join(map(str, box))}" for label, score, box in found)
    if not isinstance(result, Classification):
        return "; ".join(f"{name} {100 * share:.1f}%" for name, share in result.shares().items())
    best = zip(result.labels, result.scores, strict=True)
    return "; ".join(f"{label} {100 * score:.1f}%" for label, score in best)


def _printable(line: str) -> str:
    """Escape what the terminal's encoding cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


class _JsonList:
    """A JSON list written entry by entry, and whole even if the work is interrupted."""

    def __init__(self) -> None:
        self._before = "[\n"

    def add(self, entry: dict[str, Any]) -> None:
        sys.stdout.write(f"{self._before}  {dumps(entry)}")
        self._before = ",\n"

    def close(self) -> None:
        sys.stdout.write("[]\n" if self._before == "[\n" else "\n]\n")
