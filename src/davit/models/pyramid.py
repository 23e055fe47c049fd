"""The feature pyramid (Lin et al. 2017, arXiv 1612.03144, figure 3) as mmdet 2 builds it."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from davit.models.layers import XavierConv2d


class Pyramid(nn.Module):
    """Maps of one width: each of the maps given plus all that is coarser, enlarged, and coarser ones above them.

    Without `convolved` levels there is one coarser one, every second position of the coarsest (Mask R-CNN). With them
    they start from the backbone's last map (RetinaNet), and follow each other without the ReLU that torchvision has.
    """

    def __init__(self, widths: Sequence[int], channels: int, convolved: int = 0) -> None:
        """Take maps of `widths` channels, the finest first, to maps of `channels` channels."""
        super().__init__()
        self.laterals = nn.ModuleList(XavierConv2d(width, channels, 1) for width in widths)
        self.outputs = nn.ModuleList(XavierConv2d(channels, channels, 3, padding=1) for _ in widths)
        self.coarser = nn.ModuleList(
            XavierConv2d(channels if level else widths[-1], channels, 3, stride=2, padding=1)
            for level in range(convolved)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:  # (B, C_i, H_i, W_i)
        """Return maps (B, channels, H_i, W_i), the finest first, then the coarser ones."""
        sums = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for level in reversed(range(1, len(sums))):
            sums[level - 1] = sums[level - 1] + F.interpolate(sums[level], size=sums[level - 1].shape[-2:])
        levels = [output(x) for output, x in zip(self.outputs, sums, strict=True)]
        if not self.coarser:
            return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]
        x = maps[-1]
        for convolution in self.coarser:
            x = convolution(x)
            levels.append(x)
        return levels
