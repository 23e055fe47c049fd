"""The semantic segmenter as data; no torch here."""

from dataclasses import dataclass, field

from davit.models.config import DaViTConfig

IGNORED = 255  # the label of pixels whose class does not count


@dataclass(frozen=True, kw_only=True)
class UPerNetHead:
    """UPerNet and the auxiliary head beside it; the defaults are the paper's.

    Attributes:
        channels: channels of every map inside the head.
        pool_sizes: sides of the grids that the last map is pooled to.
        auxiliary_channels: channels inside the auxiliary head.
        dropout: probability of dropping a channel before each of the two classifiers.
    """

    channels: int = 512
    pool_sizes: tuple[int, ...] = (1, 2, 3, 6)
    auxiliary_channels: int = 256
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.channels < 1 or self.auxiliary_channels < 1:
            raise ValueError(
                f"channels and auxiliary_channels must be at least 1, got {self.channels} and {self.auxiliary_channels}"
            )
        if not self.pool_sizes or min(self.pool_sizes) < 1:
            raise ValueError(f"pool_sizes needs at least one positive side, got {self.pool_sizes}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """A backbone, its head and the number of classes; ADE20K has 150."""

    backbone: DaViTConfig
    head: UPerNetHead = field(default_factory=UPerNetHead)
    num_classes: int = 150

    def __post_init__(self) -> None:
        """Refuse classes that masks of 8 bits cannot hold."""
        if not 1 <= self.num_classes <= IGNORED:
            raise ValueError(
                f"num_classes must lie in 1 to {IGNORED}, got {self.num_classes}: masks have 8 bits, and {IGNORED} "
                "means that no class counts"
            )
