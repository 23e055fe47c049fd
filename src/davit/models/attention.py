"""The two self-attentions of DaViT (paper section 3.2 and 3.3).

Shapes: B images, H x W positions, N = H W tokens, C channels, D = 32 channels of a head or group, P = window side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davit.models.config import ChannelScale
from davit.models.windows import merge_windows, partition_windows


class WindowAttention(nn.Module):
    """Self-attention between the positions of each P x P window.

    A map that is no multiple of the window is padded with zeros on the right and bottom. The zeros enter before the
    query, key and value projection, so padded tokens take part with the projection's bias, as in the original.
    """

    def __init__(self, width: int, head_width: int, window: int) -> None:
        """Project `width` channels into heads of `head_width`, attending inside windows of side `window`."""
        super().__init__()
        self.head_width = head_width
        self.window = window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C)
        """Attend and return the same shape."""
        _, H, W, C = x.shape
        windows = partition_windows(x, self.window)  # (B * windows, P * P, C)
        qkv = self.qkv(windows).unflatten(-1, (3, C // self.head_width, self.head_width))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B * windows, heads, P * P, D)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return merge_windows(self.proj(attended), self.window, H, W)


class ChannelAttention(nn.Module):
    """Self-attention between the channels of each group: a channel is a token, the whole map its feature."""

    def __init__(self, width: int, group_width: int, scale: ChannelScale) -> None:
        """Project `width` channels into groups of `group_width`; `scale` says what the logits are scaled by."""
        super().__init__()
        self.group_width = group_width
        self.scale = scale
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C)
        """Attend and return the same shape."""
        _, H, W, C = x.shape
        qkv = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, C // self.group_width, self.group_width))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, groups, N, D)
        scale = self.group_width**-0.5 if self.scale == "channels" else _scale_by_tokens(q)
        attended = channel_attention(q, k, v, scale)
        return self.proj(attended.transpose(1, 2).flatten(2)).unflatten(1, (H, W))


def _scale_by_tokens(q: Tensor) -> float | Tensor:  # (B, groups, N, D)
    """One over the root of N; while exporting as a tensor, for OpenVINO does not convert arithmetic of free sizes."""
    tokens = q.shape[2]
    if not torch.compiler.is_exporting():
        return tokens**-0.5
    return q.new_ones(tokens, dtype=torch.promote_types(q.dtype, torch.float32)).sum().rsqrt()


def channel_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | Tensor) -> Tensor:
    """Attention between channels, equation (4): each channel of a group is one token.

    The logits sum over all N tokens and pass the range of fp16 on large images, so sum and softmax stay in fp32.

    Args:
        q: queries, (B, groups, N, D); likewise `k` and `v`.
        k: keys.
        v: values.
        scale: factor of the logits.
    """
    affinity = channel_affinity(q, k, scale)  # (B, groups, D, D)
    return v @ affinity.to(v.dtype).mT


def channel_affinity(q: Tensor, k: Tensor, scale: float | Tensor) -> Tensor:
    """The softmaxed affinity of each channel (row) to each channel of its group: (B, groups, D, D), rows sum to one."""
    if q.dtype in (torch.float16, torch.bfloat16):
        with torch.autocast(q.device.type, enabled=False):
            return (q.float().mT @ k.float() * scale).softmax(-1)
    return (q.mT @ k * scale).softmax(-1)
