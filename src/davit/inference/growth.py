"""How a cost grows with the image: the exponent e of cost = a * pixels^e."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from davit.models.complexity import attention_growth, map_size
from davit.models.config import DaViTConfig

Size = tuple[int, int]  # height, width


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A cost at several sizes of images.

    Attributes:
        pixels: of the images, ascending.
        costs: seconds, or multiply-adds.
        exponent: of the straight line through all points of the log-log plot: 1 is linear, 2 quadratic.
        last: of the line through the two largest sizes, where what grows fastest shows first.
    """

    pixels: tuple[int, ...]
    costs: tuple[float, ...]
    exponent: float
    last: float


def grow(costs: Mapping[Size, float]) -> Growth | None:
    """Fit the exponent of costs by size; None for fewer than two different sizes."""
    by_pixels = sorted({height * width: cost for (height, width), cost in costs.items()}.items())
    if len(by_pixels) < 2:
        return None
    pixels, values = zip(*by_pixels, strict=True)
    return Growth(
        pixels=pixels, costs=values, exponent=fit_exponent(pixels, values), last=fit_exponent(pixels[-2:], values[-2:])
    )


def fit_exponent(pixels: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms.

    Raises:
        ValueError: fewer than two different values of `pixels`, or a value that is not positive.
    """
    if len(set(pixels)) < 2 or min(*pixels, *costs) <= 0:
        raise ValueError(f"an exponent takes two sizes or more and positive costs, got {list(pixels)}, {list(costs)}")
    x, y = [math.log(value) for value in pixels], [math.log(value) for value in costs]
    middle = sum(x) / len(x)
    return sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)


def closed_forms(config: DaViTConfig, sizes: Sequence[Size]) -> dict[str, dict[Size, float]]:
    """Multiply-adds of one attention over the first stage's map by kind (paper section 3.4).

    "window" and "channel" are DaViT's; "global" is what full attention between all positions would take there.
    """
    found: dict[str, dict[Size, float]] = {}
    for height, width in sizes:
        tokens = map_size(height, 0) * map_size(width, 0)
        for kind, macs in attention_growth(tokens, config.widths[0], config.window, config.head_width).items():
            found.setdefault(kind, {})[height, width] = macs
    return found
