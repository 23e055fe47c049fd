"""The authors' code (github.com/dingmyu/davit): its classifier, and its backbone for mmdetection and mmsegmentation."""

from davit.weights.convert.rename import VQK, Format, Rule, block, stages

LEAVES = {
    "cpe_attn.dwconv": "cpe.0.proj",
    "norm_attn": "norm1",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "cpe_mlp.dwconv": "cpe.1.proj",
    "norm_mlp": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}

_TOWER = stages(
    [
        Rule("backbone.stages.{s}.downsample.proj", "patch_embeds.{s}.proj"),
        Rule("backbone.stages.{s}.downsample.norm", "patch_embeds.{s}.norm"),
        *block("window", "main_blocks.{s}.*.0", LEAVES),
        *block("channel", "main_blocks.{s}.*.1", LEAVES, VQK),
    ]
)

OFFICIAL = Format(
    name="official",
    made_by="the authors' classification code",
    rules=(*_TOWER, Rule("norm", "norms"), Rule("head", "head")),
    signature="patch_embeds.0.proj.weight",
    scale="channels",
    kinds=("classifier", "backbone"),
    unused=("norms",),
)

OFFICIAL_DENSE = Format(
    name="official-dense",
    made_by="the authors' mmdetection and mmsegmentation code",
    rules=(*_TOWER, *stages([Rule("norms.{s}", "norm{s}")])),
    signature="patch_embeds.0.proj.weight",
    scale="channels",
    kinds=("dense",),
)
