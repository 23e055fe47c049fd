"""The vision tower of Florence-2: Microsoft's remote code, transformers' own, and an older internal spelling."""

from davit.weights.convert.official import LEAVES
from davit.weights.convert.rename import Format, Rule, block, stages


def _remote_leaves(attention: str) -> dict[str, str]:
    return {
        "cpe_attn.dwconv": "conv1.fn.dw",
        "norm_attn": f"{attention}.norm",
        "attn.qkv": f"{attention}.fn.qkv",
        "attn.proj": f"{attention}.fn.proj",
        "cpe_mlp.dwconv": "conv2.fn.dw",
        "norm_mlp": "ffn.norm",
        "mlp.fc1": "ffn.fn.net.fc1",
        "mlp.fc2": "ffn.fn.net.fc2",
    }


def _native_leaves(attention: str) -> dict[str, str]:
    return {
        "cpe_attn.dwconv": "conv1",
        "norm_attn": "norm1",
        "attn.qkv": f"{attention}.qkv",
        "attn.proj": f"{attention}.proj",
        "cpe_mlp.dwconv": "conv2",
        "norm_mlp": "norm2",
        "mlp.fc1": "ffn.fc1",
        "mlp.fc2": "ffn.fc2",
    }


FLORENCE2 = Format(
    name="florence2",
    made_by="microsoft/Florence-2 with remote code, MedImageInsight, X-Decoder",
    rules=stages(
        [
            Rule("backbone.stages.{s}.downsample.proj", "convs.{s}.proj"),
            Rule("backbone.stages.{s}.downsample.norm", "convs.{s}.norm"),
            *block("window", "blocks.{s}.*.spatial_block", _remote_leaves("window_attn")),
            *block("channel", "blocks.{s}.*.channel_block", _remote_leaves("channel_attn")),
        ]
    ),
    signature="convs.0.proj.weight",
    scale="tokens",
    kinds=("backbone",),
    unused=("norms",),
)

FLORENCE2_NATIVE = Format(
    name="florence2-native",
    made_by="transformers' own Florence-2",
    rules=stages(
        [
            Rule("backbone.stages.{s}.downsample.proj", "convs.{s}.conv"),
            Rule("backbone.stages.{s}.downsample.norm", "convs.{s}.norm"),
            *block("window", "blocks.{s}.*.spatial_block", _native_leaves("window_attn")),
            *block("channel", "blocks.{s}.*.channel_block", _native_leaves("channel_attn")),
        ]
    ),
    signature="blocks.0.0.spatial_block.window_attn.qkv.weight",  # mmdetection's heads have a convs.0.conv too
    scale="tokens",
    kinds=("backbone",),
)

# Microsoft's loaders rename this spelling to the remote one and reorder nothing, so its roles are those of Florence-2.
# No weights are public that would settle window or scale.
FLORENCE_INTERNAL = Format(
    name="florence-internal",
    made_by="Microsoft's code before Florence-2",
    rules=(
        *stages(
            [
                Rule("backbone.stages.{s}.downsample.proj", "conv_embeds.{s}.proj"),
                Rule("backbone.stages.{s}.downsample.norm", "conv_embeds.{s}.norm"),
                *block("window", "main_blocks.{s}.*.0", LEAVES),
                *block("channel", "main_blocks.{s}.*.1", LEAVES),
            ]
        ),
        Rule("norm", "norms"),
        Rule("head", "head"),
    ),
    signature="conv_embeds.0.proj.weight",
    scale="tokens",
    kinds=("classifier", "backbone"),
    unused=("norms",),
    certain=False,
)
