"""The backbone as detection and segmentation take it: a fresh norm on each of the four maps (official dense code)."""

from collections.abc import Sequence

from torch import Tensor, nn

from davit.models.blocks import NORM_EPS
from davit.models.config import DaViTConfig
from davit.models.davit import DaViT
from davit.preprocessing import Preprocessing


class DenseBackbone(nn.Module):
    """Four normed maps; the next stage of the backbone still receives the map before its norm."""

    def __init__(self, config: DaViTConfig) -> None:
        """Build with fresh weights."""
        super().__init__()
        self.config = config
        self.backbone = DaViT(config)
        self.norms = map_norms(config.widths)
        self.channels = self.backbone.channels
        self.strides = self.backbone.strides
        self.preprocessing: Preprocessing | None = None

    def forward(self, images: Tensor) -> list[Tensor]:  # (B, in_channels, height, width)
        """Return four maps (B, C, H, W)."""
        return normed(self.norms, self.backbone(images))


def map_norms(widths: Sequence[int]) -> nn.ModuleList:
    """A norm for each map of these widths."""
    return nn.ModuleList(nn.LayerNorm(width, eps=NORM_EPS) for width in widths)


def normed(norms: nn.ModuleList, maps: Sequence[Tensor]) -> list[Tensor]:  # (B, C, H, W) each
    """Norm each map over its channels; shapes stay."""
    return [norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, x in zip(norms, maps, strict=True)]
