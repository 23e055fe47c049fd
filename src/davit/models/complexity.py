"""The paper's costs in closed form (section 3.4), per stage and operator; no torch here.

A multiply-add (MAC) counts once. Norms, softmax, GELU and additions are left out, as torch's flop counter leaves them
out; `norm_operations` gives the 5 per normalised element that fvcore adds, which the official figures include.
"""

import math
from dataclasses import dataclass, fields

from davit.models.config import STRIDES, DaViTConfig


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Multiply-adds of one stage for one image.

    Attributes:
        merge: the stem or the patch merging convolution.
        window_projections: qkv and output projections of window attention, padded tokens included.
        window_products: q k^T and its product with v inside the windows.
        channel_projections: qkv and output projections of channel attention.
        channel_products: q^T k and its product with v inside the groups.
        mlp: all MLPs.
        conv_position: all depth-wise position encodings.
    """

    merge: int
    window_projections: int
    window_products: int
    channel_projections: int
    channel_products: int
    mlp: int
    conv_position: int

    @property
    def total(self) -> int:
        """Sum over the operators."""
        return sum(getattr(self, f.name) for f in fields(self))


def map_size(size: int, stage: int) -> int:
    """Side of a stage's map for an image side."""
    return math.ceil(size / STRIDES[stage])


def stage_costs(config: DaViTConfig, height: int, width: int) -> list[StageCost]:
    """Costs of the four stages for an image of `height` x `width` pixels."""
    return [_stage_cost(config, height, width, stage) for stage in range(4)]


def _stage_cost(config: DaViTConfig, height: int, width: int, stage: int) -> StageCost:
    rows, columns = map_size(height, stage), map_size(width, stage)
    tokens, c, P = rows * columns, config.widths[stage], config.window
    padded = math.ceil(rows / P) * math.ceil(columns / P) * P * P
    each, subblocks = config.depths[stage], config.depths[stage] * len(config.attentions)
    windows, channels = each * ("window" in config.attentions), each * ("channel" in config.attentions)
    hidden = int(c * config.mlp_ratio)
    kernel = 49 * config.in_channels if stage == 0 else config.merge_kernel**2 * config.widths[stage - 1]
    position_encodings = subblocks * config.conv_position * (1 + config.mlp)
    return StageCost(
        merge=tokens * kernel * c,
        window_projections=windows * 4 * padded * c * c,
        window_products=windows * 2 * padded * P * P * c,
        channel_projections=channels * 4 * tokens * c * c,
        channel_products=channels * 2 * tokens * c * config.head_width,
        mlp=subblocks * config.mlp * 2 * tokens * c * hidden,
        conv_position=position_encodings * 9 * tokens * c,
    )


def count_macs(config: DaViTConfig, height: int, width: int, num_classes: int | None) -> int:
    """Multiply-adds of one image through the backbone, and the classifier if `num_classes` is given."""
    head = config.widths[-1] * num_classes if num_classes else 0
    return sum(stage.total for stage in stage_costs(config, height, width)) + head


def norm_operations(config: DaViTConfig, height: int, width: int, num_classes: int | None) -> int:
    """What fvcore adds for the norms: 5 for each element that passes one."""
    elements = config.widths[-1] if num_classes else 0
    for stage, (c, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        tokens = map_size(height, stage) * map_size(width, stage)
        elements += depth * len(config.attentions) * (1 + config.mlp) * tokens * c
        before = max(stage - 1, 0)  # a merge norms the map it receives, the stem the map it makes
        elements += map_size(height, before) * map_size(width, before) * config.widths[before]
    return 5 * elements


def count_parameters(config: DaViTConfig, num_classes: int | None) -> int:
    """Parameters of the backbone, and of the classifier's norm and linear layer if `num_classes` is given."""
    total = 49 * config.in_channels * config.widths[0] + 3 * config.widths[0]
    for a, b in zip(config.widths, config.widths[1:], strict=False):
        total += 2 * a + config.merge_kernel**2 * a * b + b
    for c, depth in zip(config.widths, config.depths, strict=True):
        hidden = int(c * config.mlp_ratio)
        attention = 2 * c + 4 * c * c + 4 * c
        mlp = 2 * c + 2 * c * hidden + hidden + c
        position = 10 * c * config.conv_position
        total += depth * len(config.attentions) * (attention + position + config.mlp * (mlp + position))
    last = config.widths[-1]
    return total + (2 * last + last * num_classes + num_classes if num_classes else 0)


def attention_growth(tokens: int, width: int, window: int, group_width: int) -> dict[str, int]:
    """Multiply-adds of one attention over a map of `tokens`: global, window and channel (paper section 3.4)."""
    projections = 4 * tokens * width * width
    return {
        "global": projections + 2 * tokens * tokens * width,
        "window": projections + 2 * tokens * window * window * width,
        "channel": projections + 2 * tokens * group_width * width,
    }
