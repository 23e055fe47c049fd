"""The backbone as detection and segmentation take it: a fresh norm on each of the four maps (official dense code)."""

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
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=NORM_EPS) for width in config.widths)
        self.channels = self.backbone.channels
        self.strides = self.backbone.strides
        self.preprocessing: Preprocessing | None = None

    def forward(self, images: Tensor) -> list[Tensor]:  # (B, in_channels, height, width)
        """Return four maps (B, C, H, W)."""
        maps = self.backbone(images)
        return [norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, x in zip(self.norms, maps, strict=True)]
