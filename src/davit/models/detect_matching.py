"""Which boxes learn which object: assignment by overlap and sampling, as mmdet 2 does them."""

import torch
from torch import Tensor, nn

BACKGROUND = -1
NEITHER = -2


def match(objects: Tensor, boxes: Tensor, positive: float, negative: float, least: float) -> Tensor:
    """Assign boxes to objects by IoU.

    A box belongs to the object that it overlaps most if they overlap by `positive`, to the background if all overlap
    by less than `negative`. Then each object gets the boxes that overlap it most, if by `least` and at all, whatever
    else they were; where they tie between objects, the last one gets them. Boxes that are no numbers match nothing.

    Args:
        objects: (M, 4), M may be 0.
        boxes: (N, 4).
        positive: IoU from which a box belongs to an object.
        negative: IoU below which a box is background.
        least: IoU from which an object may claim its best boxes.

    Returns:
        (N,) int64: index of the object, `BACKGROUND` or `NEITHER`.
    """
    from torchvision.ops import box_iou  # imports as much as torch itself; classifiers do without

    if not len(objects) or not len(boxes):
        return boxes.new_full((len(boxes),), BACKGROUND, dtype=torch.int64)
    overlaps = box_iou(objects, boxes)
    overlap, nearest = overlaps.max(dim=0)
    matches = torch.full_like(nearest, NEITHER)
    matches[overlap < negative] = BACKGROUND
    matches = torch.where(overlap >= positive, nearest, matches)
    best = overlaps.max(dim=1).values[:, None]
    claimant, claimed = ((overlaps == best) & (best >= least) & (best > 0)).nonzero().unbind(1)
    last = torch.full_like(nearest, -1).scatter_reduce(0, claimed, claimant, "amax")
    return torch.where(last >= 0, last, matches)


def draw(matches: Tensor, count: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `count` boxes, at most a `share` of them on objects; return their indices, on objects and on background."""
    positive = (matches >= 0).nonzero().squeeze(1)
    negative = (matches == BACKGROUND).nonzero().squeeze(1)
    positive = _some(positive, int(count * share), generator)
    return positive, _some(negative, count - len(positive), generator)


def _some(indices: Tensor, count: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(indices), generator=generator, device=indices.device)
    return indices[order[:count]]


class ImageGenerators(nn.Module):
    """A random generator for each image of a batch.

    Where the images are part of a larger batch, `place` says which part, as for `DropPath`: what is drawn for an image
    does not depend on how the batch was dealt out, nor on the other images.
    """

    def __init__(self) -> None:
        """Start outside of any larger batch."""
        super().__init__()
        self.first = 0
        self.batch_size = 0

    def place(self, first: int, batch_size: int) -> None:
        """Say that the images to come are rows `first`, `first + 1`, ... of a batch of `batch_size`."""
        self.first, self.batch_size = first, batch_size

    def forward(self, count: int, device: torch.device) -> list[torch.Generator]:
        """Return a generator on `device` for each of `count` images, seeded by PyTorch's own on the CPU."""
        first = self.first if self.batch_size else 0
        seeds = torch.randint(2**62, (self.batch_size or count,))[first : first + count].tolist()
        return [torch.Generator(device).manual_seed(seed) for seed in seeds]
