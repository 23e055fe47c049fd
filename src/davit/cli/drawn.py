"""The pictures that `davit predict --save` leaves."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

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
        self._images: list[dict[str, Any]] = []
        self._results: list[dict[str, Any]] = []

    def draw(self, path: Path, result: "Result") -> None:
        """Draw one result on its picture.

        Raises:
            OSError: the drawing cannot be written.
        """
        from davit.decoding import read_image
        from davit.explain.draw_results import draw_detections, draw_segmentation
        from davit.structures import Detections, Segmentation

        name = self._name(path)
        if isinstance(result, Detections):
            self._write(draw_detections(read_image(path), result, self.threshold), name)
            number = len(self._images) + 1
            self._images.append(
                {"id": number, "file_name": str(path), "height": result.size[0], "width": result.size[1]}
            )
            self._results += result.to_coco(number)
        elif isinstance(result, Segmentation):
            self._write(draw_segmentation(read_image(path), result), name)
            result.to_png(self.folder / f"{name}.mask.png")

    def close(self) -> None:
        """Write results.json, where objects were found or could have been."""
        from davit.atomic import atomic_write

        if not self._images:
            return
        categories = [{"id": index, "name": name} for index, name in enumerate(self.classes)]
        text = json.dumps({"images": self._images, "categories": categories, "annotations": self._results})
        with atomic_write(self.folder / "results.json") as file:
            file.write(text.encode() + b"\n")

    def _name(self, path: Path) -> str:
        """The picture's own name, numbered where another folder has the same."""
        name, number = path.stem, 1
        while name in self._taken:
            number += 1
            name = f"{path.stem}-{number}"
        self._taken.add(name)
        return name

    def _write(self, image: "Image", name: str) -> None:
        image.save(self.folder / f"{name}.png")
