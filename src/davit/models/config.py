"""The architecture as data; no torch here, so that listing and planning stay instant."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from davit.naming import unknown_name

Attention = Literal["window", "channel"]
ChannelScale = Literal["channels", "tokens"]

STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class DaViTConfig:
    """One DaViT backbone (paper section 3).

    Attributes:
        in_channels: channels of the input image.
        widths: channels of the four stages.
        depths: dual attention blocks of the four stages.
        head_width: channels of a window-attention head and of a channel-attention group (32 in every known weight).
        window: side of an attention window, in tokens.
        merge_kernel: side of the stride-2 convolution between stages: 2, or 3 for overlapped merging.
        channel_scale: channel-attention logits are divided by the square root of the `channels` of a group (the
            paper) or of the number of `tokens` (Florence-2).
        attentions: the attentions of a dual block, in order.
        conv_position: 3x3 depth-wise convolution before each attention and each MLP.
        mlp: an MLP after each attention.
        mlp_ratio: hidden width of the MLP over its input width.
        drop_path: probability of dropping the last residual branch; it rises linearly from 0 over the sub-blocks.
        gradient_checkpointing: recompute each attention block in the backward pass instead of keeping its activations.
    """

    in_channels: int = 3
    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (1, 1, 3, 1)
    head_width: int = 32
    window: int = 7
    merge_kernel: int = 2
    channel_scale: ChannelScale = "channels"
    attentions: tuple[Attention, ...] = ("window", "channel")
    conv_position: bool = True
    mlp: bool = True
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if len(self.widths) != 4 or len(self.depths) != 4:
            raise ValueError(f"widths and depths need four stages, got {self.widths} and {self.depths}")
        if min(self.depths) < 1:
            raise ValueError(f"each stage needs at least one dual block, got depths={self.depths}")
        bad = [w for w in self.widths if w < 1 or w % self.head_width]
        if self.head_width < 1 or bad:
            raise ValueError(f"widths {self.widths} must be multiples of head_width={self.head_width}")
        if self.in_channels < 1:
            raise ValueError(f"in_channels must be at least 1, got {self.in_channels}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")
        if self.merge_kernel not in (2, 3):
            raise ValueError(f"merge_kernel must be 2 or 3 (overlapped), got {self.merge_kernel}")
        if self.channel_scale not in ("channels", "tokens"):
            raise ValueError(f"channel_scale must be 'channels' or 'tokens', got {self.channel_scale!r}")
        known = {"window", "channel"}
        if not self.attentions or not set(self.attentions) <= known or len(set(self.attentions)) < len(self.attentions):
            raise ValueError(f"attentions must be 'window', 'channel' or both once, in order, got {self.attentions}")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path must lie in [0, 1), got {self.drop_path}")
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio must be positive, got {self.mlp_ratio}")

    def override(self, **changes: Any) -> "DaViTConfig":
        """Return a copy with some fields changed; an unknown field raises and names the nearest."""
        names = [f.name for f in fields(self)]
        for key in changes:
            if key not in names:
                raise unknown_name("field of DaViTConfig", key, names)
        return replace(self, **{k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()})

    def drop_path_rates(self) -> list[float]:
        """Rate of each sub-block in order, linear from 0 to `drop_path` (official code, not timm's per dual block)."""
        count = len(self.attentions) * sum(self.depths)
        return [self.drop_path * i / (count - 1) if count > 1 else 0.0 for i in range(count)]


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A backbone and the number of classes of its head."""

    backbone: DaViTConfig
    num_classes: int = 1000

    def __post_init__(self) -> None:
        """Refuse a head without classes."""
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {self.num_classes}; for maps use create_backbone")


@dataclass(frozen=True, kw_only=True)
class EmbedderConfig:
    """A backbone and the length of the vectors that are made of its last map."""

    backbone: DaViTConfig
    embedding: int

    @property
    def num_classes(self) -> int:
        """None: vectors name nothing."""
        return 0
