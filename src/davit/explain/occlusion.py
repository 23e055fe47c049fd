"""Occlusion (Zeiler & Fergus 2014, arXiv 1311.2901, section 4.2): what the answer loses when a part is covered."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from davit.explain.targets import Target


@dataclass(frozen=True, kw_only=True)
class OcclusionConfig:
    """How a picture is covered.

    Attributes:
        patches: along the longer side, laid beside each other; each is a square.
        overlap: places of a patch along each side of it: 2 moves it by half its side.
        batch_size: covered pictures computed at once.
    """

    patches: int = 7
    overlap: int = 2
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Refuse what covers nothing."""
        for name in ("patches", "overlap", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def occlusion_map(
    model: nn.Module,
    pixels: Tensor,
    target: Target,
    config: OcclusionConfig | None = None,
    tell: Callable[[int], None] | None = None,
) -> Tensor:
    """How much the target loses when each part of an image is covered with the image's mean colour.

    Args:
        model: the model of the target, in eval mode.
        pixels: (C, height, width), normalised.
        target: what is explained.
        config: size and places of the patches.
        tell: called with the number of places that were computed, as they are.

    Returns:
        (rows, columns) float32 on the CPU, a cell of `cell_side` pixels for each step of the patch: the mean loss over
        the patches that cover the cell. Negative where covering helps.
    """
    config = config or OcclusionConfig()
    height, width = pixels.shape[-2:]
    step = cell_side(height, width, config)
    rows, columns = -(-height // step), -(-width // step)
    total, count = torch.zeros(rows, columns), torch.zeros(rows, columns)
    image = pixels.to(next(model.parameters()))
    colour = image.mean((1, 2), keepdim=True)
    with torch.inference_mode():
        whole = float(target.measure(image[None])[0])
        for places in _batches(rows, columns, config):
            covered = image.repeat(len(places), 1, 1, 1)
            for one, (row, column) in zip(covered, places, strict=True):
                top, left = max(row, 0) * step, max(column, 0) * step
                one[:, top : (row + config.overlap) * step, left : (column + config.overlap) * step] = colour
            losses = whole - target.measure(covered).float().cpu()
            for (row, column), loss in zip(places, losses, strict=True):
                cells = slice(max(row, 0), row + config.overlap), slice(max(column, 0), column + config.overlap)
                total[cells] += loss
                count[cells] += 1
            if tell:
                tell(len(places))
    return total / count


def cell_side(height: int, width: int, config: OcclusionConfig) -> int:
    """Pixels of a cell's side: the step of the patch."""
    return max(1, -(-max(height, width) // (config.patches * config.overlap)))


def count_places(height: int, width: int, config: OcclusionConfig) -> int:
    """How often the model is asked, but for the whole image."""
    step = cell_side(height, width, config)
    return (-(-height // step) + config.overlap - 1) * (-(-width // step) + config.overlap - 1)


def _batches(rows: int, columns: int, config: OcclusionConfig) -> Iterator[list[tuple[int, int]]]:
    """Cells where the patch begins; it hangs over the borders, so that each cell is covered equally often."""
    first = 1 - config.overlap
    places = [(row, column) for row in range(first, rows) for column in range(first, columns)]
    for start in range(0, len(places), config.batch_size):
        yield places[start : start + config.batch_size]
