"""OpenMMLab's mmpretrain, whose stages end with the merging that ours begin with."""

from davit.weights.convert.official import LEAVES
from davit.weights.convert.rename import VQK, Format, Rule, block, stages

_CHANNEL = LEAVES | {
    "cpe_attn.dwconv": "cpe1.proj",
    "cpe_mlp.dwconv": "cpe2.proj",
    "mlp.fc1": "ffn.layers.0.0",
    "mlp.fc2": "ffn.layers.1",
}
_WINDOW = _CHANNEL | {"attn.qkv": "attn.w_msa.qkv", "attn.proj": "attn.w_msa.proj"}

MMPRETRAIN = Format(
    name="mmpretrain",
    made_by="OpenMMLab's mmpretrain",
    rules=(
        Rule("backbone.stages.0.downsample.proj", "backbone.patch_embed.projection"),
        Rule("backbone.stages.0.downsample.norm", "backbone.patch_embed.norm"),
        *stages(
            [
                Rule("backbone.stages.{s}.downsample.proj", "backbone.stages.{p}.downsample.projection"),
                Rule("backbone.stages.{s}.downsample.norm", "backbone.stages.{p}.downsample.norm"),
            ],
            first=1,
        ),
        *stages(
            [
                *block("window", "backbone.stages.{s}.blocks.*.spatial_block", _WINDOW),
                *block("channel", "backbone.stages.{s}.blocks.*.channel_block", _CHANNEL, VQK),
            ]
        ),
        Rule("norm", "backbone.norm3"),
        Rule("head", "head.fc"),
    ),
    signature="patch_embed.projection.weight",
    scale="channels",
    kinds=("classifier", "backbone"),
    unused=("backbone.norm3",),
    inner="backbone.",
)
