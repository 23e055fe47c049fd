"""What a detector returns, and its way to the pixels of the picture."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from davit.models.detect_boxes import clip
from davit.structures import Detections

MASK_THRESHOLD = 0.5


class DetectorOutput(NamedTuple):
    """The objects found in one image, best first.

    Attributes:
        boxes: (N, 4) float32: left, top, right, bottom in pixels of the image given.
        scores: (N,) float32 in [0, 1].
        indices: (N,) int64, class indices.
        masks: (N, M, M) float32, probabilities on a grid that spans the box; or None.
    """

    boxes: Tensor
    scores: Tensor
    indices: Tensor
    masks: Tensor | None = None

    def to(self, device: torch.device) -> "DetectorOutput":
        """Copy to a device."""
        masks = None if self.masks is None else self.masks.to(device)
        return DetectorOutput(self.boxes.to(device), self.scores.to(device), self.indices.to(device), masks)


def to_detections(
    output: DetectorOutput, input_size: tuple[int, int], picture: tuple[int, int], names: Sequence[str]
) -> Detections:
    """Carry what was found in a resized image over to its picture; the result is on the CPU.

    Objects that lie outside or have no width or height are left out.

    Args:
        output: of one image.
        input_size: height and width of the image, without what was padded.
        picture: height and width of the picture that was resized to it.
        names: of the classes; a class without a name is labelled by its index.
    """
    height, width = picture[0] / input_size[0], picture[1] / input_size[1]
    boxes = output.boxes.detach().float().cpu() * torch.tensor([width, height, width, height])
    boxes = clip(boxes, picture)
    solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, indices = boxes[solid], output.indices.cpu()[solid]
    masks = None
    if output.masks is not None:
        masks = torch.zeros(len(boxes), *picture, dtype=torch.bool)
        for mask, box, whole in zip(output.masks.detach().float().cpu()[solid], boxes, masks, strict=True):
            paste(mask, box, whole)
    return Detections(
        boxes=boxes,
        scores=output.scores.detach().float().cpu()[solid],
        indices=indices,
        labels=tuple(names[i] if i < len(names) else str(i) for i in indices.tolist()),
        size=picture,
        masks=masks,
    )


def paste(mask: Tensor, box: Tensor, whole: Tensor) -> None:
    """Enlarge a mask (M, M) of probabilities to its box (4,) and write where it holds into `whole`, (height, width).

    A pixel belongs to the object if the probability interpolated at its centre reaches one half; beyond the outermost
    centres of the grid it falls towards 0, as in mmdet.
    """
    left, top, right, bottom = box.tolist()
    rows = torch.arange(int(top), min(int(bottom) + 1, whole.shape[0]))
    columns = torch.arange(int(left), min(int(right) + 1, whole.shape[1]))
    y = (rows + 0.5 - top) / (bottom - top) * 2 - 1
    x = (columns + 0.5 - left) / (right - left) * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
    inside = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0] >= MASK_THRESHOLD
    whole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = inside
