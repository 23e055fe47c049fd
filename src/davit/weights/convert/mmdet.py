"""The authors' Mask R-CNN and RetinaNet (github.com/dingmyu/davit, mmdetection 2), whose backbone is the dense one.

Above the backbone names alone differ. Ours and theirs agree in what tensors hold: classes with the background last,
four offsets for each class or anchor, anchors ratio by ratio and then scale by scale, regions flattened channel by
channel. Box coding, anchors, levels of regions, RoIAlign and the pasting of masks follow the same formulas.

What stays different from their code, which stands on mmcv 1.3.0 and so on mmdetection of about 2.11:

- RetinaNet takes the 1,000 best pairs of anchor and class of a level, where theirs takes all classes of the 1,000
  anchors with the best class: the same unless a level has more than 1,000 pairs above the score threshold.
- Proposals that have no width or height, as those outside the image, are dropped, where theirs are among the 1,000
  and get classified. Only boxes without area come of them, and of results those are dropped too.
- A picture that is made smaller is smoothed before, where OpenCV's bilinear filter is not.

Tensors do not tell the settings that their configuration holds (thresholds, scales and ratios of anchors): the
official ones are taken. A RetinaNet has no use for the norm of stride 4. Their code makes one nevertheless unless it
is taken out by hand, as their configuration asks; it is left out, and not written.
"""

from davit.weights.convert.official import OFFICIAL_DENSE
from davit.weights.convert.rename import Format, Rule

MASK_CONVS = RETINA_CONVS = 4
BACKBONE = "backbone."
HINT = f"; to take its backbone alone, keep only the tensors under {BACKBONE}"


def under_backbone(first: int) -> tuple[Rule, ...]:
    """The rules of the dense backbone inside a whole model, with norms from stage `first` on."""
    rules = [Rule(rule.ours, BACKBONE + rule.theirs, rule.slots) for rule in OFFICIAL_DENSE.rules]
    inside = [rule for rule in rules if not rule.ours.startswith("norms.")]
    norms = [Rule(f"norms.{stage - first}", f"{BACKBONE}norm{stage}") for stage in range(first, 4)]
    return (*inside, *norms)


def _numbered(ours: str, theirs: str, count: int) -> list[Rule]:
    return [Rule(ours.format(i), theirs.format(i)) for i in range(count)]


MASK_RCNN = Format(
    name="mmdet-mask-rcnn",
    made_by="the authors' Mask R-CNN in mmdetection",
    rules=(
        *under_backbone(first=0),
        *_numbered("pyramid.laterals.{}", "neck.lateral_convs.{}.conv", 4),
        *_numbered("pyramid.outputs.{}", "neck.fpn_convs.{}.conv", 4),
        Rule("head.proposals.conv", "rpn_head.rpn_conv"),
        Rule("head.proposals.objectness", "rpn_head.rpn_cls"),
        Rule("head.proposals.offsets", "rpn_head.rpn_reg"),
        Rule("head.fc1", "roi_head.bbox_head.shared_fcs.0"),
        Rule("head.fc2", "roi_head.bbox_head.shared_fcs.1"),
        Rule("head.classify", "roi_head.bbox_head.fc_cls"),
        Rule("head.regress", "roi_head.bbox_head.fc_reg"),
        *_numbered("head.mask_convs.{}", "roi_head.mask_head.convs.{}.conv", MASK_CONVS),
        Rule("head.mask_upsample", "roi_head.mask_head.upsample"),
        Rule("head.mask_classify", "roi_head.mask_head.conv_logits"),
    ),
    signature=OFFICIAL_DENSE.signature,
    scale=OFFICIAL_DENSE.scale,
    kinds=("detector",),
    inner=BACKBONE,
    hint=HINT,
)

RETINANET = Format(
    name="mmdet-retinanet",
    made_by="the authors' RetinaNet in mmdetection",
    rules=(
        *under_backbone(first=1),
        *_numbered("pyramid.laterals.{}", "neck.lateral_convs.{}.conv", 3),
        *_numbered("pyramid.outputs.{}", "neck.fpn_convs.{}.conv", 3),
        Rule("pyramid.coarser.0", "neck.fpn_convs.3.conv"),
        Rule("pyramid.coarser.1", "neck.fpn_convs.4.conv"),
        *_numbered("head.class_convs.{}", "bbox_head.cls_convs.{}.conv", RETINA_CONVS),
        *_numbered("head.box_convs.{}", "bbox_head.reg_convs.{}.conv", RETINA_CONVS),
        Rule("head.classify", "bbox_head.retina_cls"),
        Rule("head.regress", "bbox_head.retina_reg"),
    ),
    signature=OFFICIAL_DENSE.signature,
    scale=OFFICIAL_DENSE.scale,
    kinds=("detector",),
    unused=(f"{BACKBONE}norm0",),
    inner=BACKBONE,
    hint=HINT,
)
