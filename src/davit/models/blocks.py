"""The dual attention block (paper figure 3): position encoding, attention, position encoding, MLP, twice."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from davit.models.attention import ChannelAttention, WindowAttention
from davit.models.config import Attention, DaViTConfig

NORM_EPS = 1e-5


class ConvPositionEncoding(nn.Module):
    """A 3x3 depth-wise convolution on the residual stream, which tells tokens where they are."""

    def __init__(self, width: int) -> None:
        """Convolve `width` channels, each by itself."""
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C)
        """Add the convolution of the map to the map."""
        maps, height = x.permute(0, 3, 1, 2), x.shape[1]
        if self.training and not torch.compiler.is_compiling() and height < 3 and x.device.type == "cpu":
            # oneDNN goes back through one or two rows five to eleven times slower than through three
            convolved = self.dwconv(F.pad(maps, (0, 0, 0, 3 - height)))[:, :, :height]
        else:
            convolved = self.dwconv(maps)
        return x + convolved.permute(0, 2, 3, 1)


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        """Go through `hidden` channels."""
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:  # (..., C)
        """Apply to each token by itself."""
        return self.fc2(F.gelu(self.fc1(x)))


class DropPath(nn.Module):
    """Drop a residual branch of whole images while training, and scale up the kept ones (stochastic depth).

    Where the images are part of a larger batch, `place` says which part: the draw is made for the whole batch, so that
    an image's fate does not depend on how the batch was dealt out.
    """

    def __init__(self, rate: float) -> None:
        """Drop with probability `rate`."""
        super().__init__()
        self.rate = rate
        self.batch_size = 0
        self.first: Tensor | None = None

    def place(self, first: int, batch_size: int) -> None:
        """Say that the images to come are rows `first`, `first + 1`, ... of a batch of `batch_size`."""
        if self.first is None:
            self.first = torch.tensor(first)
        self.first.fill_(first)  # in place and a tensor: a compiled model does not notice
        self.batch_size = batch_size

    def forward(self, x: Tensor) -> Tensor:  # (B, ...)
        """Return `x`, or zeros for the dropped images."""
        if not self.training or self.rate == 0.0:
            return x
        draws = torch.rand(self.batch_size or len(x), device=x.device)
        if self.first is not None:
            draws = draws[self.first + torch.arange(len(x), device=x.device)]
        keep = (draws >= self.rate).to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
        return x * keep / (1.0 - self.rate)

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"{self.rate:.3f}"


class AttentionBlock(nn.Module):
    """Position encoding, attention, position encoding, MLP, each on the residual stream."""

    def __init__(self, config: DaViTConfig, width: int, attention: Attention, drop_path: float) -> None:
        """Build for `width` channels with the attention named."""
        super().__init__()
        self.cpe_attn = ConvPositionEncoding(width) if config.conv_position else nn.Identity()
        self.norm_attn = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = (
            WindowAttention(width, config.head_width, config.window)
            if attention == "window"
            else ChannelAttention(width, config.head_width, config.channel_scale)
        )
        self.mlp = Mlp(width, int(width * config.mlp_ratio)) if config.mlp else None
        if config.mlp:
            self.cpe_mlp = ConvPositionEncoding(width) if config.conv_position else nn.Identity()
            self.norm_mlp = nn.LayerNorm(width, eps=NORM_EPS)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C)
        """Return the same shape."""
        x = self.cpe_attn(x)
        x = x + self.drop_path(self.attn(self.norm_attn(x)))
        if self.mlp is None:
            return x
        x = self.cpe_mlp(x)
        return x + self.drop_path(self.mlp(self.norm_mlp(x)))


class DualAttentionBlock(nn.Module):
    """A window-attention block, then a channel-attention block (or as `config.attentions` says)."""

    def __init__(self, config: DaViTConfig, width: int, drop_paths: list[float]) -> None:
        """Build one attention block per entry of `config.attentions`, with its own drop-path rate."""
        super().__init__()
        for attention, rate in zip(config.attentions, drop_paths, strict=True):
            self.add_module(attention, AttentionBlock(config, width, attention, rate))
        self.gradient_checkpointing = config.gradient_checkpointing

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C)
        """Return the same shape."""
        recompute = self.gradient_checkpointing and self.training
        for block in self.children():
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x
