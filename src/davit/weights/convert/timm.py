"""timm's DaViT: numbered sub-blocks (the paper's attention) or named ones (Florence-2's), stages nested or flat."""

from davit.weights.convert.official import LEAVES
from davit.weights.convert.rename import QKV, VQK, Format, Rule, block, stages

_LEAVES = LEAVES | {"cpe_attn.dwconv": "cpe1.proj", "cpe_mlp.dwconv": "cpe2.proj"}
_HEAD = (Rule("norm", "head.norm"), Rule("head", "head.fc"))


def _tower(stage: str, window: str, channel: str, slots: str) -> tuple[Rule, ...]:
    stem = (
        Rule("backbone.stages.0.downsample.proj", "stem.conv"),
        Rule("backbone.stages.0.downsample.norm", "stem.norm"),
    )
    merges = (
        Rule("backbone.stages.{s}.downsample.proj", f"{stage}.downsample.conv"),
        Rule("backbone.stages.{s}.downsample.norm", f"{stage}.downsample.norm"),
    )
    blocks = (
        *block("window", f"{stage}.blocks.*.{window}", _LEAVES),
        *block("channel", f"{stage}.blocks.*.{channel}", _LEAVES, slots),
    )
    return (*stem, *stages(merges, first=1), *stages(blocks))


TIMM = Format(
    name="timm",
    made_by="timm's davit_tiny to davit_giant",
    rules=(*_tower("stages.{s}", "0", "1", VQK), *_HEAD),
    signature="stem.conv.weight",
    scale="channels",
    kinds=("classifier", "backbone"),
    unused=("head.norm",),
)

TIMM_FEATURES = Format(
    name="timm-features",
    made_by="timm's davit_tiny to davit_giant with features_only",
    rules=_tower("stages_{s}", "0", "1", VQK),
    signature="stem.conv.weight",
    scale="channels",
    kinds=("backbone",),
)

TIMM_NAMED = Format(
    name="timm-named",
    made_by="timm's davit_base_fl and davit_huge_fl",
    rules=(*_tower("stages.{s}", "spatial_block", "channel_block", QKV), *_HEAD),
    signature="stem.conv.weight",
    scale="tokens",
    kinds=("classifier", "backbone"),
    unused=("head.norm",),
)

TIMM_NAMED_FEATURES = Format(
    name="timm-named-features",
    made_by="timm's davit_base_fl and davit_huge_fl with features_only",
    rules=_tower("stages_{s}", "spatial_block", "channel_block", QKV),
    signature="stem.conv.weight",
    scale="tokens",
    kinds=("backbone",),
)
