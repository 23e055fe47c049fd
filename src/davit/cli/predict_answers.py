"""What `davit predict` says of each picture, whether printed or written to a file."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from davit.cli.predict_drawn import Drawer
    from davit.decoding import ImageError
    from davit.inference.predictor import Predictor
    from davit.inference.results import Result
    from davit.inference.stream_files import PictureFiles


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of each picture.

    Attributes:
        top: classes to name.
        threshold: objects that score less are left out.
        workers: threads that decode and draw; None for the usual number.
    """

    top: int = 5
    threshold: float = 0.5
    workers: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.top < 1:
            raise ValueError(f"--top must be at least 1, got {self.top}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"--threshold must lie in 0 to 1, got {self.threshold}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"--workers must be at least 0, got {self.workers}")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer for one picture.

    Attributes:
        path: of the picture.
        result: without objects below the threshold; or why there is none.
        entry: the same as JSON values.
    """

    path: Path
    result: "Result | ImageError"
    entry: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Pictures, and who answers them.

    Attributes:
        predictor: computes.
        images: paths of the pictures.
        wanted: of each.
        drawer: draws the results, where that is asked for.
    """

    predictor: "Predictor"
    images: "PictureFiles"
    wanted: Wanted
    drawer: "Drawer | None" = None

    def answers(self, first: int = 0) -> Generator[Answer]:
        """Yield an answer for each picture from `first` on, in order, drawn where there is a drawer.

        Raises:
            ValueError: as `predict_stream`.
            OSError: a drawing cannot be written.
        """
        from davit.cpus import usual_workers
        from davit.inference.stream import map_ahead, predict_stream

        wanted, drawer = self.wanted, self.drawer
        workers = usual_workers() if wanted.workers is None else wanted.workers
        pictures, paths = tee(self.images)  # listed once: files may come and go meanwhile
        named = ((path, drawer.name(path) if drawer else "") for path in paths)
        results = predict_stream(self.predictor, pictures, top=wanted.top, workers=workers, first=first)
        pairs = zip(islice(named, first, None), results, strict=False)
        drawing = workers if drawer else 0
        answers = map_ahead(lambda one: self._answer(*one[0], one[1]), pairs, workers=drawing, ahead=drawing)
        with closing(results), closing(answers):
            yield from answers

    def _answer(self, path: Path, name: str, result: "Result | ImageError") -> Answer:
        from davit.decoding import ImageError
        from davit.structures import Detections

        if isinstance(result, ImageError):
            return Answer(path=path, result=result, entry={"file": str(path), "error": str(result)})
        result = result.above(self.wanted.threshold) if isinstance(result, Detections) else result
        if self.drawer:
            self.drawer.draw(path, name, result)
        return Answer(path=path, result=result, entry=result.to_json())
