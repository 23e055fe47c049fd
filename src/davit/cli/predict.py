"""`davit predict`: name what is in images, and where."""

import sys
from collections.abc import Sequence
from contextlib import closing
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from davit.inference.backends import BackendName

if TYPE_CHECKING:
    from davit.cli.predict_answers import Job
    from davit.cli.predict_drawn import Drawer
    from davit.inference.predictor import Predictor
    from davit.inference.results import Result

_HELP = """Name what is in images: classes, best first; with a detector objects and their places, with a segmenter the
share of each class. With an image-text model --labels says what to look for. --save draws objects and maps.

Files that cannot be decoded are named on stderr while the others go on. The exit code is then 1, and 2 where nothing
could be begun.

For many images write to a file: --out takes a line of JSON for each as soon as it is known. Stopped by Ctrl-C, SIGTERM
(exit codes 130 and 143) or a power cut, the same command goes on where the file ends.

  davit predict --model davit_tiny.msft_in1k cat.jpg
  davit predict --model detector.safetensors street.jpg --save drawn
  davit predict --model mine.safetensors photos 'more/*.webp' --top 1 --json
  davit predict --model mine.safetensors million --backend native --out million.jsonl
  davit predict --model image_text.safetensors photos --labels 'cat,dog,a red bus'
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
        workers: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
        device: Annotated[str | None, arg(metavar="NAME")] = None,
        backend: BackendName = "eager",
        variant: Annotated[str | None, arg(metavar="NAME")] = None,
        labels: Annotated[str | None, arg(metavar="NAME,...|FILE", help_behavior_hint="")] = None,
        templates: Annotated[str | None, arg(metavar="TEXT|FILE", help_behavior_hint="")] = None,
        threshold: Annotated[float, arg(metavar="SCORE")] = 0.5,
        save: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None,
        out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
        trust: bool = False,
        json: bool = False,
    ) -> int:
        """Predict.

        Args:
            paths: Images, folders (with all folders in them) or quoted patterns such as 'photos/**/*.jpg'.
            model: A checkpoint, a name of `davit models`, or a file of `davit export`.
            top: How many classes to name.
            batch_size: Images of one size computed at once.
            workers: Threads that decode while the model computes; by default one for each processor, at most eight.
            device: cpu, cuda, cuda:1 and so on; by default the graphics card if there is one.
            backend: What computes a checkpoint: eager is PyTorch, native our engine for CPUs, auto the faster of both
                on this machine.
            variant: What MODEL is, where its tensors leave it open: a name of `davit models`.
            labels: What an image-text model is to look for: names between commas, or a file with one a line.
            templates: How a name becomes a caption: a sentence with {} for it, a file of them, or simple or imagenet
                for open_clip's 7 and 80; by default the model's own.
            threshold: Objects that score less are neither told nor drawn.
            save: Draw objects and maps into this folder; with a detector also results.json, all objects in COCO's
                format, with a segmenter also index masks.
            out: Append a line of JSON for each image to this file, instead of printing; images that it has are not
                computed again.
            trust: Run the code that a file of `davit export --format torch` is.
            json: Print one JSON list, with an entry for each image; with --out what was done.
        """
        from davit.cli.predict_answers import Job, Wanted
        from davit.cli.predict_file import TerminatedError, terminable
        from davit.inference.predictor import Predictor
        from davit.inference.stream_files import PictureFiles
        from davit.inference.zero_shot import parse_labels

        images = PictureFiles(paths)
        if templates is not None and labels is None:
            raise ValueError("--templates says how names of --labels are put: give both")
        looked_for = None if labels is None else parse_labels(labels, templates)
        wanted = Wanted(top=top, threshold=threshold, workers=workers)
        predictor = Predictor.load(
            model, variant=variant, batch_size=batch_size, device=device, backend=backend, tell=_tell, trust=trust,
            labels=looked_for,
        )  # fmt: skip
        drawer = _drawer(save, threshold, predictor)
        job = Job(predictor=predictor, images=images, wanted=wanted, drawer=drawer)
        asked = (("variant", variant), ("backend", backend), ("top", top), ("threshold", threshold), ("save", save))
        options = {name: None if value is None else str(value) for name, value in asked}
        if looked_for:
            options |= {"labels": ", ".join(looked_for.names), "templates": " | ".join(looked_for.templates)}
        try:
            with terminable():
                return _write_all(job, out, model, options, json) if out else _print_all(job, json)
        except TerminatedError:
            _tell("terminated")
            return 143

    return tyro.cli(predict, prog="davit predict", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def _tell(choice: str) -> None:
    print(f"davit predict: {choice}", file=sys.stderr)


def find_images(paths: Sequence[str]) -> list[Path]:
    """List the files that paths, folders and patterns stand for; see `PictureFiles`."""
    from davit.inference.stream_files import PictureFiles

    return list(PictureFiles(paths))


def _drawer(folder: Path | None, threshold: float, predictor: "Predictor") -> "Drawer | None":
    from davit.cli.predict_drawn import Drawer

    return Drawer(folder, threshold, predictor.backend) if folder else None


def _write_all(job: "Job", out: Path, model: str, options: dict[str, str | None], json: bool) -> int:
    """Answer into a file."""
    from davit.cli.predict_drawn import write_coco
    from davit.cli.predict_file import made_with, write_answers
    from davit.inference.stream_results import ResultFile

    file = ResultFile(out, made_with(model, options), map(str, job.images))
    code = write_answers(file, job.answers, len(job.images), json=json)
    if job.drawer and job.predictor.backend.kind == "detection" and file.answered == len(job.images):
        write_coco(file.entries, job.drawer.classes, job.drawer.folder / "results.json")
    return code


def _print_all(job: "Job", json: bool) -> int:
    """Answer on stdout, a line for each image or one JSON list."""
    from tqdm import tqdm

    from davit.cli.predict_drawn import Spool, write_coco
    from davit.decoding import ImageError, show_path

    failed = 0
    writer = _JsonList() if json else None
    spool = Spool() if job.drawer and job.predictor.backend.kind == "detection" else None
    with closing(job.answers()) as answers:
        bar = tqdm(answers, total=len(job.images), unit="image", disable=None, leave=False)
        try:
            for answer in bar:
                if isinstance(answer.result, ImageError):
                    failed += 1
                    tqdm.write(f"davit predict: {answer.result}", file=sys.stderr)
                elif not writer:
                    line = f"{show_path(answer.path)}: {_told(answer.result)}"
                    tqdm.write(_printable(line), file=sys.stdout)
                if writer:
                    writer.add(answer.entry)
                if spool:
                    spool.add(answer.entry)
                sys.stdout.flush()
        finally:
            bar.close()
            if writer:
                writer.close()
            if spool and job.drawer:
                write_coco(spool.entries, job.drawer.classes, job.drawer.folder / "results.json")
    return 1 if failed else 0


def _told(result: "Result") -> str:
    from davit.structures import Classification, Detections, Embedding

    if isinstance(result, Detections):
        found = zip(result.labels, result.scores.tolist(), result.boxes.round().int().tolist(), strict=True)
        return "; ".join(f"{label} {100 * score:.1f}% at {','.join(map(str, box))}" for label, score, box in found)
    if isinstance(result, Embedding):
        return f"a vector of {len(result.vector)} numbers"
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
        sys.stdout.flush()
