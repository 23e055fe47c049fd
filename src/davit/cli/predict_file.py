"""`davit predict --out`: answers into a file, now and in as many goes as it takes."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from json import dumps
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from davit.cli.progress import Progress

if TYPE_CHECKING:
    from davit.cli.predict_answers import Answer
    from davit.inference.stream_results import ResultFile


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, which ends a work as Ctrl-C does."""


@contextmanager
def terminable() -> Generator[None]:
    """SIGTERM raises in the main thread; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers no signals there
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, previous)
        raise TerminatedError

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def write_answers(
    file: "ResultFile",
    answers: "Callable[[int], Generator[Answer]]",
    total: int,
    *,
    json: bool = False,
    verb: str = "predict",
    out: Path | None = None,
) -> int:
    """Append the answers that a file lacks, say how far it has come, and return the exit code.

    Args:
        file: with the answers of earlier goes.
        answers: gives those from a picture on.
        total: pictures in all.
        json: print what was done as JSON.
        verb: what asks.
        out: what will be made of the file; by default it stays what it is.
    """
    say = partial(_say, verb)
    before, started = file.answered, time.monotonic()
    if before:
        say(f"{file.path} has {before:,} of {total:,} answers already")
    try:
        with Progress(verb, "images", total - before) as progress:
            _write(file, answers(before), progress, verb)
    except KeyboardInterrupt as stop:
        say(f"stopped; {_go_on(file, total)}")
        return 143 if isinstance(stop, TerminatedError) else 130
    except OSError as error:
        say(f"error: {error}; {_go_on(file, total)}")
        return 1
    seconds = time.monotonic() - started
    done = file.answered - before
    report = {
        "out": str(out or file.path), "images": file.answered, "errors": file.broken, "answered_before": before,
        "seconds": round(seconds, 3), "images_per_second": round(done / seconds, 2),
    }  # fmt: skip
    errors = f", {file.broken:,} of them errors" if file.broken else ""
    told = f"{out or file.path}: {file.answered:,} answers{errors}; {done:,} in {seconds:.1f} s"
    print(dumps(report) if json else told)
    return 1 if file.broken else 0


def _write(file: "ResultFile", answers: "Generator[Answer]", progress: Progress, verb: str) -> None:
    """Append all answers; the progress tells of those that are on the disk."""
    from tqdm import tqdm

    from davit.decoding import ImageError

    told = file.answered
    with closing(answers), file:
        for answer in answers:
            if isinstance(answer.result, ImageError):
                tqdm.write(f"davit {verb}: {answer.result}", file=sys.stderr)
            file.add(answer.entry)
            if file.safe > told:
                progress(file.safe - told)
                told = file.safe


def _go_on(file: "ResultFile", total: int) -> str:
    return f"{file.answered:,} of {total:,} images are answered in {file.path}; the same command goes on from there"


def _say(verb: str, text: str) -> None:
    print(f"davit {verb}: {text}", file=sys.stderr)


def made_with(model: str, options: Mapping[str, object]) -> dict[str, object]:
    """What answers depend on, as `ResultFile` compares it: the model, by its content, and options of the command."""
    from davit.inference.stream_results import fingerprint
    from davit.weights.catalog import WEIGHTS
    from davit.weights.source import find_file

    if (entry := WEIGHTS.get(model)) is not None:
        return {"model": f"{model} ({entry.revision})", **options}
    path = find_file(model)
    return {"model": f"{path.name} (SHA-256 {fingerprint(path)[:16]})", **options}
