"""The authors' UPerNet (github.com/dingmyu/davit, mmsegmentation), whose backbone is the dense one.

Above the backbone names alone differ; both heads compute the same. What stays different from their code: a picture
that is made smaller is smoothed before, where OpenCV's bilinear filter is not. Tensors do not tell the sides of the
grids that the last map is pooled to: the official ones are taken.
"""

from davit.weights.convert.mmdet import BACKBONE, HINT, under_backbone
from davit.weights.convert.official import OFFICIAL_DENSE
from davit.weights.convert.rename import Format, Rule

LEVELS = 4

_CONVS = {
    "head.pooling.pooled.*": "decode_head.psp_modules.*.1",  # entry 0 of each is the average, which has no tensors
    "head.pooling.fusion": "decode_head.bottleneck",
    "head.fusion": "decode_head.fpn_bottleneck",
    "auxiliary.conv": "auxiliary_head.convs.0",
}
_CONVS |= {f"head.laterals.{i}": f"decode_head.lateral_convs.{i}" for i in range(LEVELS - 1)}
_CONVS |= {f"head.outputs.{i}": f"decode_head.fpn_convs.{i}" for i in range(LEVELS - 1)}
_PARTS = (("conv", "conv"), ("norm", "bn"))

UPERNET = Format(
    name="mmseg-upernet",
    made_by="the authors' UPerNet in mmsegmentation",
    rules=(
        *under_backbone(first=0),
        *(Rule(f"{ours}.{part}", f"{theirs}.{name}") for ours, theirs in _CONVS.items() for part, name in _PARTS),
        Rule("head.classifier", "decode_head.conv_seg"),
        Rule("auxiliary.classifier", "auxiliary_head.conv_seg"),
    ),
    signature=OFFICIAL_DENSE.signature,
    scale=OFFICIAL_DENSE.scale,
    kinds=("segmenter",),
    inner=BACKBONE,
    leaves=("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    hint=HINT,
)
