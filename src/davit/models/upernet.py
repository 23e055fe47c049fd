"""Semantic segmentation: UPerNet (arXiv 1807.10221) and an auxiliary head on DaViT, as mmsegmentation builds them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davit.models.blocks import DropPath
from davit.models.davit import DaViT
from davit.models.dense import map_norms, normed
from davit.models.layers import RectifiedConv2d, SmallConv2d
from davit.models.segmenter_config import SegmenterConfig, UPerNetHead
from davit.preprocessing import Preprocessing

AUXILIARY_STAGE = 2  # the third


class SegmenterOutput(NamedTuple):
    """Logits of each class at each position.

    Attributes:
        logits: (B, num_classes, ceil(height / 4), ceil(width / 4)).
        auxiliary: those of the auxiliary head, which only training uses, (B, num_classes, ceil(height / 16),
            ceil(width / 16)).
    """

    logits: Tensor
    auxiliary: Tensor


class BatchNorm(nn.BatchNorm2d):
    """Batch norm, except where the batch has one value for each channel: one value has no variance.

    There the running statistics norm it, in training as in evaluation, and stay as they are. It happens to a single
    picture pooled to 1x1; PyTorch refuses it.
    """

    def forward(self, input: Tensor) -> Tensor:  # (B, C, H, W)
        """Return the same shape."""
        if self.training and input.numel() == input.shape[1]:
            mean, variance = self.running_mean, self.running_var
            return F.batch_norm(input, mean, variance, self.weight, self.bias, training=False, eps=self.eps)
        return super().forward(input)


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU; the size stays."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        """Convolve with an odd kernel."""
        super().__init__()
        self.conv = RectifiedConv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = BatchNorm(channels)

    def forward(self, x: Tensor) -> Tensor:  # (B, in_channels, H, W)
        """Return (B, channels, H, W)."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


class ChannelDropout(DropPath):
    """Drop channels of a map while training, and scale up the kept ones.

    Placed in a larger batch as drop path is, so that what an image loses does not depend on how the batch was dealt
    out; `nn.Dropout2d` would drop the same channels in every part.
    """

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        """Return `x` with zeros for the dropped channels."""
        if not self.training or self.rate == 0.0:
            return x
        draws = torch.rand(self.batch_size or len(x), x.shape[1], device=x.device)
        if self.first is not None:
            draws = draws[self.first + torch.arange(len(x), device=x.device)]
        keep = (draws >= self.rate).to(x.dtype)[:, :, None, None]
        return x * keep / (1.0 - self.rate)


class PyramidPooling(nn.Module):
    """A map beside what its averages over coarse grids say, fused."""

    def __init__(self, in_channels: int, config: UPerNetHead) -> None:
        """Pool to grids of `config.pool_sizes`."""
        super().__init__()
        self.pool_sizes = config.pool_sizes
        self.pooled = nn.ModuleList(ConvNorm(in_channels, config.channels, 1) for _ in config.pool_sizes)
        self.fusion = ConvNorm(in_channels + len(config.pool_sizes) * config.channels, config.channels, 3)

    def forward(self, x: Tensor) -> Tensor:  # (B, in_channels, H, W)
        """Return (B, channels, H, W)."""
        grids = (conv(average(x, side)) for side, conv in zip(self.pool_sizes, self.pooled, strict=True))
        return self.fusion(torch.cat([x, *(resize(grid, like=x) for grid in grids)], dim=1))


class UPerNet(nn.Module):
    """Pyramid pooling on the last map, sums from there up to the largest, and a fusion of all four."""

    def __init__(self, widths: tuple[int, ...], config: UPerNetHead, num_classes: int) -> None:
        """Take maps of `widths` channels, largest map first."""
        super().__init__()
        channels = config.channels
        self.pooling = PyramidPooling(widths[-1], config)
        self.laterals = nn.ModuleList(ConvNorm(width, channels, 1) for width in widths[:-1])
        self.outputs = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in widths[:-1])
        self.fusion = ConvNorm(len(widths) * channels, channels, 3)
        self.dropout = ChannelDropout(config.dropout)
        self.classifier = SmallConv2d(channels, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:  # (B, C, H, W) each
        """Return logits at the size of the first map, (B, num_classes, H, W)."""
        x = self.pooling(maps[-1])
        outputs = [x]
        for lateral, output, level in reversed(list(zip(self.laterals, self.outputs, maps[:-1], strict=True))):
            level = lateral(level)
            x = level + resize(x, like=level)
            outputs.insert(0, output(x))
        fused = self.fusion(torch.cat([outputs[0], *(resize(x, like=outputs[0]) for x in outputs[1:])], dim=1))
        return self.classifier(self.dropout(fused))


class AuxiliaryHead(nn.Module):
    """A convolution and a classifier on one map, which give the backbone a shorter way to the loss."""

    def __init__(self, width: int, config: UPerNetHead, num_classes: int) -> None:
        """Take a map of `width` channels."""
        super().__init__()
        self.conv = ConvNorm(width, config.auxiliary_channels, 3)
        self.dropout = ChannelDropout(config.dropout)
        self.classifier = SmallConv2d(config.auxiliary_channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, width, H, W)
        """Return logits, (B, num_classes, H, W)."""
        return self.classifier(self.dropout(self.conv(x)))


class Segmenter(nn.Module):
    """A backbone under UPerNet.

    Attributes:
        config: the architecture.
        preprocessing: what images go through before the model.
        classes: a name for each logit, where known.
    """

    def __init__(self, config: SegmenterConfig) -> None:
        """Build with fresh weights."""
        super().__init__()
        widths = config.backbone.widths
        self.config = config
        self.backbone = DaViT(config.backbone)
        self.norms = map_norms(widths)
        self.head = UPerNet(widths, config.head, config.num_classes)
        self.auxiliary = AuxiliaryHead(widths[AUXILIARY_STAGE], config.head, config.num_classes)
        self.preprocessing: Preprocessing | None = None
        self.classes: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> SegmenterOutput:  # (B, in_channels, height, width)
        """Return logits at a quarter of the images' size."""
        maps = normed(self.norms, self.backbone(images))
        return SegmenterOutput(self.head(maps), self.auxiliary(maps[AUXILIARY_STAGE]))


def average(x: Tensor, side: int) -> Tensor:  # (B, C, H, W)
    """Average over the cells of a grid, (B, C, side, side).

    While exporting as two matrix products: an exporter of free sizes would keep the cells of the size it traced.
    """
    if not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(x, side)
    return _cells(x.shape[2], side, x) @ x @ _cells(x.shape[3], side, x).mT


def _cells(size: int, side: int, like: Tensor) -> Tensor:
    """Weight of each of `size` positions in each of `side` averages, (side, size)."""
    cell = torch.arange(side, device=like.device).unsqueeze(1)
    position = torch.arange(size, device=like.device)
    first, end = cell * size // side, ((cell + 1) * size + side - 1) // side
    return ((position >= first) & (position < end)).to(like.dtype) / (end - first)


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Interpolate a map to the height and width of another."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
