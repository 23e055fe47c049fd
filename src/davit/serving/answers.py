"""Outputs of a backend to the JSON that a client gets."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from torch import Tensor

from davit.colours import class_colour
from davit.inference.backends.protocol import Backend
from davit.inference.results import Prepared, read_outputs
from davit.models.detections import DetectorOutput
from davit.serving.errors import ProblemError
from davit.structures import Segmentation

_MASK_BYTES = 1 << 26  # of whole masks in memory at once; a hundred of 50 megapixels would take 5 GB


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of each picture.

    Attributes:
        top: classes to name.
        threshold: objects that score less are left out.
        map: whether the class of each pixel is wanted as a picture.
    """

    top: int = 5
    threshold: float = 0.5
    map: bool = False


def answer(
    backend: Backend, output: Any, prepared: Prepared, wanted: Wanted, waited_for: Callable[[], bool]
) -> dict[str, Any]:
    """Return JSON values for one picture.

    Args:
        backend: what made the output.
        output: a batch of 1.
        prepared: the picture.
        wanted: of it.
        waited_for: whether anyone still is; asked between the masks of large pictures.

    Raises:
        ValueError: the output is NaN, or does not fit the classes.
        ProblemError: nobody waits.
    """
    height, width = prepared.size
    about = {"kind": backend.kind, "width": width, "height": height}
    if backend.kind == "detection":
        return _objects(backend, output[0], prepared, wanted, waited_for) | about
    (result,) = read_outputs(backend.kind, output, [prepared], backend.classes, wanted.top)
    values = result.to_json() | about
    return values | _map(result) if isinstance(result, Segmentation) and wanted.map else values


def _objects(
    backend: Backend, output: DetectorOutput, prepared: Prepared, wanted: Wanted, waited_for: Callable[[], bool]
) -> dict[str, Any]:
    """Some objects at a time, for each mask is as large as the picture."""
    kept = output.scores >= wanted.threshold
    output = _part(output, kept)
    step = max(1, _MASK_BYTES // (prepared.size[0] * prepared.size[1]))
    values: dict[str, Any] = {"file": None, "objects": []}
    for first in range(0, len(output.scores), step):
        if not waited_for():
            raise ProblemError("deadline_exceeded", "the deadline passed while masks were drawn: ask for more time")
        part = _part(output, slice(first, first + step))
        (result,) = read_outputs("detection", [part], [prepared], backend.classes, wanted.top)
        values["objects"] += result.to_json()["objects"]
    values["colours"] = {each["label"]: _colour(each["index"]) for each in values["objects"]}
    return values


def _colour(index: int) -> str:
    """The colour of a class as CSS writes it."""
    return "#{:02x}{:02x}{:02x}".format(*class_colour(index))


def _part(output: DetectorOutput, which: Tensor | slice) -> DetectorOutput:
    masks = None if output.masks is None else output.masks[which]
    return DetectorOutput(output.boxes[which], output.scores[which], output.indices[which], masks)


def _map(result: Segmentation) -> dict[str, Any]:
    stream = BytesIO()
    result.to_png(stream)
    colours = {name: _colour(index) for index, name in enumerate(result.names)}
    return {
        "map": f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}",
        "colours": {name: colours[name] for name in result.shares()},
    }
