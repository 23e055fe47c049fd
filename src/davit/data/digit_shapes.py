"""A digit of the built-in ones at any size: enlarged smoothly, stretched, turned and, for training, bent, redrawn."""

from math import ceil, cos, exp, log, radians, sin
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST = 14.0  # pixels; a smaller digit cannot be read
MOST_BENT = 2.0  # pixels of the 8x8 source; further, digits fold over
MOST_STROKE = 60.0  # of 255; further, empty borders count as ink, or thin strokes are lost
_BORDER = 1  # empty pixels around the 8x8 source, into which the ink fades
_SOURCE = 8 + 2 * _BORDER
_FAINTEST, _SOFT = 95, 80  # of 255: ink from which a stroke begins, and from there on the width of its soft edge


def padded(picture: Image.Image) -> Image.Image:
    """A source with a border of empty pixels."""
    wide = Image.new("L", (_SOURCE, _SOURCE))
    wide.paste(picture, (_BORDER, _BORDER))
    return wide


def enlarged(
    source: Image.Image, largest: float, bend: float, rng: np.random.Generator, stroke: float = 0.0
) -> "NDArray[np.uint8]":
    """Enlarge, stretch, turn and bend a padded source in one step, and make its strokes thicker or thinner.

    Args:
        source: as `padded` gives it.
        largest: size of the largest digits, in pixels; the smallest have 14.
        bend: how far nine points of the shape may move each way, in pixels of the source.
        rng: draws size, stretch, turn, moves and strokes.
        stroke: how far the ink from which a stroke begins may move each way, of 255.

    Returns:
        How much ink covers each pixel, 0 to 255, without empty borders.
    """
    scale = exp(rng.uniform(log(SMALLEST), log(largest))) / 8
    across = scale * exp(rng.uniform(-0.15, 0.15))
    turn = radians(rng.uniform(-12, 12))
    edge = ceil(_SOURCE * max(scale, across))
    a, b, d, e = cos(turn) / across, sin(turn) / across, -sin(turn) / scale, cos(turn) / scale
    middle, centre = edge / 2, _SOURCE / 2
    matrix = (a, b, centre - (a + b) * middle, d, e, centre - (d + e) * middle)
    if bend:
        mesh = _bent(matrix, edge, rng.uniform(-bend, bend, (3, 3, 2)))
        ink = source.transform((edge, edge), Image.Transform.MESH, mesh, Image.Resampling.BICUBIC)
    else:
        ink = source.transform((edge, edge), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    ink = ink.point(_cover(rng.uniform(-stroke, stroke) if stroke else 0.0))
    return np.asarray(ink.crop(ink.getbbox()))


def _cover(shift: float) -> list[int]:
    """How much each value of ink covers: nothing below the faintest, all above the soft edge."""
    return [round(255 * min(max((value - _FAINTEST - shift) / _SOFT, 0), 1)) for value in range(256)]


def _bent(matrix: tuple[float, ...], edge: int, moves: "NDArray[np.float64]") -> list[Any]:
    """Four quarters of a square of `edge` pixels, each with its corners in the source: those of `matrix`, moved.

    Neighbours share corners, so that what is drawn does not tear.
    """
    a, b, c, d, e, f = matrix
    stops = (0, edge // 2, edge)
    corner = {
        (i, j): (a * x + b * y + c + moves[i, j, 0], d * x + e * y + f + moves[i, j, 1])
        for i, y in enumerate(stops)
        for j, x in enumerate(stops)
    }
    return [
        (
            (stops[j], stops[i], stops[j + 1], stops[i + 1]),
            (*corner[i, j], *corner[i + 1, j], *corner[i + 1, j + 1], *corner[i, j + 1]),
        )
        for i in range(2)
        for j in range(2)
    ]
