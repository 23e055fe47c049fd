"""The DaViT backbone: images to four feature maps at strides 4, 8, 16 and 32 (paper section 3.1, figure 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davit.models.blocks import NORM_EPS, DualAttentionBlock
from davit.models.config import STRIDES, DaViTConfig
from davit.preprocessing import Preprocessing


class PatchEmbed(nn.Module):
    """Overlapping 7x7 patches at stride 4, then a norm."""

    def __init__(self, in_channels: int, width: int) -> None:
        """Embed images of `in_channels` into `width` channels."""
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, 7, stride=4, padding=3)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, images: Tensor) -> Tensor:  # (B, in_channels, height, width)
        """Return (B, ceil(height / 4), ceil(width / 4), C)."""
        # Three channels are cheaply rearranged; otherwise the norm would have to rearrange C of them.
        images = images.contiguous(memory_format=torch.channels_last)
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class Downsample(nn.Module):
    """A norm, then a stride-2 convolution that merges patches; odd maps get a row or column of zeros between them.

    While exporting, a 2x2 kernel always gets them, for it never reaches those it does not need: this keeps the output
    size at ceil(size / 2) without a remainder, which `torch.export` of free sizes would stumble over.
    """

    def __init__(self, in_width: int, width: int, kernel: int) -> None:
        """Merge with a 2x2 kernel, or a 3x3 one for overlapped merging."""
        super().__init__()
        self.norm = nn.LayerNorm(in_width, eps=NORM_EPS)
        self.proj = nn.Conv2d(in_width, width, kernel, stride=2, padding=kernel // 3)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C)
        """Return (B, ceil(H / 2), ceil(W / 2), C')."""
        x = self.norm(x)
        _, H, W, _ = x.shape
        if self.proj.padding == (0, 0) and (torch.compiler.is_exporting() or H % 2 or W % 2):
            x = F.pad(x, (0, 0, 0, 1, 0, 1))
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Stage(nn.Module):
    """Patch merging (or the patch embedding, for the first stage), then dual attention blocks."""

    def __init__(self, config: DaViTConfig, index: int, drop_paths: list[float]) -> None:
        """Build stage `index`; `drop_paths` holds a rate per attention block."""
        super().__init__()
        width = config.widths[index]
        self.downsample = (
            Downsample(config.widths[index - 1], width, config.merge_kernel)
            if index
            else PatchEmbed(config.in_channels, width)
        )
        each = len(config.attentions)
        self.blocks = nn.ModuleList(
            DualAttentionBlock(config, width, drop_paths[i * each : (i + 1) * each])
            for i in range(config.depths[index])
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) at this stage's stride."""
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class DaViT(nn.Module):
    """The backbone. Its state dict is the same under every head, so it loads strictly everywhere.

    Attributes:
        config: the architecture.
        channels: channels of the four maps.
        strides: strides of the four maps, (4, 8, 16, 32).
        preprocessing: what the images went through before, where the weights say so.
    """

    def __init__(self, config: DaViTConfig) -> None:
        """Build with fresh weights, initialised as the official code does."""
        super().__init__()
        self.config = config
        self.channels = config.widths
        self.strides = STRIDES
        self.preprocessing: Preprocessing | None = None
        rates = config.drop_path_rates()
        each = len(config.attentions)
        self.stages = nn.ModuleList()
        for index, depth in enumerate(config.depths):
            start = each * sum(config.depths[:index])
            self.stages.append(Stage(config, index, rates[start : start + each * depth]))
        self.apply(init_linear)

    def forward(self, images: Tensor) -> list[Tensor]:  # (B, in_channels, height, width)
        """Return four maps (B, C, H, W) with H = ceil(height / stride), likewise W; any image size."""
        x = images
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x.permute(0, 3, 1, 2))
        return maps


def init_linear(module: nn.Module) -> None:
    """Truncated normal of deviation 0.02 and zero bias for linear layers; the rest keeps PyTorch's defaults."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
