"""The pictures that `davit predict --save` leaves."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from davit.inference.backends.protocol import Backend
    from davit.inference.results import Result


class Drawer:
    """Draws results into a folder, each under the name of its picture."""

    def __init__(self, folder: Path, threshold: float, backend: "Backend") -> None:
        """Make the folder.

        Raises:
            ValueError: the model gives nothing to draw.
            OSError: the folder cannot be made.
        """
        if backend.kind == "classification":
            raise ValueError("--save draws objects and maps; this model only names classes")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.threshold, self.classes = folder, threshold, backend.classes
        self._taken: set[str] = set()

    def name(self, path: Path) -> str:
        """The picture's own name, numbered where one before, of another folder or ending, has the same.

        Ask once for each picture, in order.
        """
        return free_name(path.stem, self._taken)

    def draw(self, path: Path, name: str, result: "Result") -> None:
        """Draw one result on its picture, onto the disk; several threads may do so at once.

        Raises:
            OSError: the drawing cannot be written.
        """
        from davit.decoding import read_image
        from davit.explain.draw_results import draw_detections, draw_segmentation
        from davit.structures import Detections, Segmentation

        target = self.folder / f"{name}.png"
        try:
            if isinstance(result, Detections):
                draw_detections(read_image(path), result, self.threshold).save(target)
            elif isinstance(result, Segmentation):
                draw_segmentation(read_image(path), result).save(target)
                target = _flushed(target).with_name(f"{name}.mask.png")
                result.to_png(target)
            _flushed(target)
        except OSError as error:
            raise OSError(f"could not write {target}: {error.strerror or error}") from error


def free_name(stem: str, taken: set[str]) -> str:
    """The name itself, or numbered where it is taken; it is taken then."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name


class Spool:
    """Answers kept on the disk, not in memory, until results.json is written."""

    def __init__(self) -> None:
        """Open a file without a name."""
        from tempfile import TemporaryFile

        self._file = TemporaryFile("w+b")  # noqa: SIM115 - gone with this object

    def add(self, entry: dict[str, Any]) -> None:
        """Keep an answer."""
        self._file.write(json.dumps(entry).encode() + b"\n")

    def entries(self) -> Iterator[dict[str, Any]]:
        """Read them all."""
        self._file.seek(0)
        yield from map(json.loads, self._file)


def write_coco(entries: Callable[[], Iterable[dict[str, Any]]], classes: tuple[str, ...], path: Path) -> None:
    """Write the answers of a detector in COCO's format, one at a time.

    Args:
        entries: gives all of them anew each time, as `Detections.to_json` makes them; those of errors are left out.
        classes: names.
        path: where to.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    from davit.atomic import atomic_write

    categories = [{"id": index, "name": name} for index, name in enumerate(classes)]
    with atomic_write(path) as file:
        file.write(b'{"images": [')
        file.writelines(_listed(_images(entries())))
        file.write(b'], "categories": ' + json.dumps(categories).encode() + b', "annotations": [')
        file.writelines(_listed(_annotations(entries())))
        file.write(b"]}\n")


def _listed(values: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    for number, value in enumerate(values):
        yield b",\n" * (number > 0) + json.dumps(value).encode()


def _images(entries: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    answered = (entry for entry in entries if "error" not in entry)
    for number, entry in enumerate(answered, 1):
        yield {"id": number, "file_name": entry["file"], "height": entry["height"], "width": entry["width"]}


def _annotations(entries: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    answered = (entry for entry in entries if "error" not in entry)
    for number, entry in enumerate(answered, 1):
        for found in entry["objects"]:
            left, top, right, bottom = found["box"]
            box = [left, top, round(right - left, 2), round(bottom - top, 2)]
            annotation = {"image_id": number, "category_id": found["index"], "bbox": box, "score": found["score"]}
            yield annotation | ({"segmentation": found["mask"]} if "mask" in found else {})


def _flushed(path: Path) -> Path:
    """Bring a file to the disk: the answer that goes with it is durable, too."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return path
