"""Whole detectors read from files of mmdetection's names against its formulas, from the backbone's maps to the picture.

What stays different is tested too: which candidates RetinaNet looks at, and what becomes of empty proposals.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, roi_align

import davit
from davit.models.detections import to_detections
from davit.models.detector import Detector
from mmdet_files import file_of, saved
from mmdet_transcription import mmdet_anchors
from small_detectors import KINDS

State = dict[str, Tensor]
SIZE, PICTURE = (120, 150), (241, 299)  # the image, which gets zeros up to 128x160, and the picture it was made from
OCTAVES = (4.0, 4 * 2 ** (1 / 3), 4 * 4 ** (1 / 3))
RATIOS = (0.5, 1.0, 2.0)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # for maps this small a second one only waits


class Found(NamedTuple):
    """Objects in a picture; masks as probabilities of its pixels, or where they hold."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None = None

    def only(self, kept: Tensor) -> "Found":
        """Some of the objects."""
        return Found(*(None if part is None else part[kept] for part in self))

    def solid(self) -> "Found":
        """Those with area: our results hold no others."""
        return self.only(((self.boxes[:, 2:] - self.boxes[:, :2]) > 0).all(1))


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2)


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def neck(state: State, maps: Sequence[Tensor], first: int) -> list[Tensor]:
    """A layer norm on each map (C, H, W) from stage `first` on, then mmdet's FPN."""
    normed = []
    for stage, x in list(enumerate(maps))[first:]:
        weight, bias = state[f"backbone.norm{stage}.weight"], state[f"backbone.norm{stage}.bias"]
        normed.append(F.layer_norm(x.permute(1, 2, 0), x.shape[:1], weight, bias).permute(2, 0, 1)[None])
    sums = [conv(state, f"neck.lateral_convs.{i}.conv", x) for i, x in enumerate(normed)]
    for i in range(len(sums) - 1, 0, -1):
        sums[i - 1] = sums[i - 1] + F.interpolate(sums[i], size=sums[i - 1].shape[2:], mode="nearest")
    levels = [conv(state, f"neck.fpn_convs.{i}.conv", x) for i, x in enumerate(sums)]
    if first == 0:
        return [*levels, levels[-1][:, :, ::2, ::2]]
    levels.append(conv(state, "neck.fpn_convs.3.conv", normed[-1], 2))
    return [*levels, conv(state, "neck.fpn_convs.4.conv", levels[-1], 2)]


def level_anchors(levels: Sequence[Tensor], strides: Sequence[int], scales: Sequence[float]) -> list[Tensor]:
    sizes = [(x.shape[2] * stride, x.shape[3] * stride) for x, stride in zip(levels, strides, strict=True)]
    boxes = [mmdet_anchors(*size, (stride,), scales, RATIOS) for size, stride in zip(sizes, strides, strict=True)]
    return [torch.from_numpy(level).float() for level in boxes]


def delta2bbox(anchors: Tensor, deltas: Tensor, stds: Sequence[float], size: tuple[int, int]) -> Tensor:
    dx, dy, dw, dh = (deltas * torch.tensor(stds)).unbind(-1)
    limit = abs(math.log(16 / 1000))
    left, top, right, bottom = anchors.unbind(-1)
    x, y = (left + right) / 2 + (right - left) * dx, (top + bottom) / 2 + (bottom - top) * dy
    w, h = (right - left) * dw.clamp(-limit, limit).exp(), (bottom - top) * dh.clamp(-limit, limit).exp()
    edges = (x - w / 2).clamp(0, size[1]), (y - h / 2).clamp(0, size[0])
    return torch.stack((*edges, (x + w / 2).clamp(0, size[1]), (y + h / 2).clamp(0, size[0])), -1)


def nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes that stay, best first: greedy, in each group alone."""
    order = scores.argsort(descending=True, stable=True)
    rivals = (box_iou(boxes[order], boxes[order]) > threshold) & (groups[order, None] == groups[order])
    alive = torch.ones(len(order), dtype=torch.bool)
    for place in range(len(order)):
        if alive[place]:
            alive[place + 1 :] &= ~rivals[place, place + 1 :]
    return order[alive]


def image_proposals(state: State, levels: Sequence[Tensor], size: tuple[int, int], keep_empty: bool) -> Tensor:
    boxes, scores, groups = [], [], []
    for i, (x, anchors) in enumerate(zip(levels, level_anchors(levels, (4, 8, 16, 32, 64), (8.0,)), strict=True)):
        hidden = conv(state, "rpn_head.rpn_conv", x).relu()
        certain = conv(state, "rpn_head.rpn_cls", hidden)[0].permute(1, 2, 0).reshape(-1).sigmoid()
        deltas = conv(state, "rpn_head.rpn_reg", hidden)[0].permute(1, 2, 0).reshape(-1, 4)
        ranked, order = certain.sort(descending=True)
        scores.append(ranked[:1000])
        boxes.append(delta2bbox(anchors[order[:1000]], deltas[order[:1000]], (1.0,) * 4, size))
        groups.append(torch.full_like(order[:1000], i))
    every, certain, group = torch.cat(boxes), torch.cat(scores), torch.cat(groups)
    if not keep_empty:
        solid = (every[:, 2] > every[:, 0]) & (every[:, 3] > every[:, 1])
        every, certain, group = every[solid], certain[solid], group[solid]
    return every[nms(every, certain, group, 0.7)[:1000]]


def regions(levels: Sequence[Tensor], boxes: Tensor, side: int) -> Tensor:
    """SingleRoIExtractor: each box from one level, by its size."""
    extent = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = (extent / 56 + 1e-6).log2().floor().clamp(0, 3).int()
    cut = boxes.new_zeros(len(boxes), levels[0].shape[1], side, side)
    for i, x in enumerate(levels[:4]):
        cut[level == i] = roi_align(x, [boxes[level == i]], side, 1 / 2 ** (i + 2), 0, aligned=True)
    return cut


def mask_rcnn(
    state: State, maps: Sequence[Tensor], limit: int = 100, size=SIZE, picture=PICTURE, keep_empty=False
) -> Found:
    levels = neck(state, maps, 0)
    offered = image_proposals(state, levels, size, keep_empty)
    assert len(offered) < 1000 or not keep_empty
    box, mask = "roi_head.bbox_head", "roi_head.mask_head"
    x = regions(levels, offered, 7).flatten(1)
    for i in (0, 1):
        x = linear(state, f"{box}.shared_fcs.{i}", x).relu()
    scores = linear(state, f"{box}.fc_cls", x).softmax(1)[:, :-1]  # background is the last
    deltas = linear(state, f"{box}.fc_reg", x).view(len(offered), -1, 4)
    scale = torch.tensor([picture[1] / size[1], picture[0] / size[0]] * 2)
    boxes = delta2bbox(offered[:, None].expand_as(deltas), deltas, (0.1, 0.1, 0.2, 0.2), size) * scale
    row, kind = (scores > 0.05).nonzero().unbind(1)
    kept = nms(boxes[row, kind], scores[row, kind], kind, 0.5)[:limit]
    row, kind = row[kept], kind[kept]
    boxes = boxes[row, kind]
    x = regions(levels, boxes / scale, 14)
    for i in range(4):
        x = conv(state, f"{mask}.convs.{i}.conv", x).relu()
    x = F.conv_transpose2d(x, state[f"{mask}.upsample.weight"], state[f"{mask}.upsample.bias"], stride=2).relu()
    masks = conv(state, f"{mask}.conv_logits", x)[torch.arange(len(kind)), kind].sigmoid()
    pasted = [paste(one, edges, picture) for one, edges in zip(masks, boxes.tolist(), strict=True)]
    return Found(boxes, scores[row, kind], kind, torch.stack(pasted))


def paste(mask: Tensor, box: list[float], picture: tuple[int, int]) -> Tensor:
    """Sample the mask at the centre of every pixel of the picture."""
    left, top, right, bottom = box
    y = ((torch.arange(picture[0]) + 0.5 - top) / max(bottom - top, 1e-6) * 2 - 1)[:, None].expand(picture)
    x = ((torch.arange(picture[1]) + 0.5 - left) / max(right - left, 1e-6) * 2 - 1)[None].expand(picture)
    return F.grid_sample(mask[None, None], torch.stack((x, y), -1)[None], align_corners=False)[0, 0]


def best_anchors(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Mmdet up to 2.18: every class of the 1,000 anchors whose best class is best."""
    chosen = torch.zeros(len(scores), 1, dtype=torch.bool)
    chosen[scores.amax(1).topk(min(1000, len(scores))).indices] = True
    row, kind = ((scores > 0.05) & chosen).nonzero().unbind(1)
    return row, kind


def best_pairs(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Mmdet from 2.19 on: the 1,000 best pairs of anchor and class."""
    row, kind = (scores > 0.05).nonzero().unbind(1)
    order = scores[row, kind].argsort(descending=True)[:1000]
    return row[order], kind[order]


def retinanet(state: State, maps: Sequence[Tensor], choose: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Found:
    levels = neck(state, maps, 1)
    every, certain, kinds = [], [], []
    for x, anchors in zip(levels, level_anchors(levels, (8, 16, 32, 64, 128), OCTAVES), strict=True):
        a = b = x
        for i in range(4):
            a = conv(state, f"bbox_head.cls_convs.{i}.conv", a).relu()
            b = conv(state, f"bbox_head.reg_convs.{i}.conv", b).relu()
        logits = conv(state, "bbox_head.retina_cls", a)[0].permute(1, 2, 0)
        scores = logits.reshape(len(anchors), -1).sigmoid()
        deltas = conv(state, "bbox_head.retina_reg", b)[0].permute(1, 2, 0).reshape(-1, 4)
        row, kind = choose(scores)
        every.append(delta2bbox(anchors[row], deltas[row], (1.0,) * 4, SIZE))
        certain.append(scores[row, kind])
        kinds.append(kind)
    scale = torch.tensor([PICTURE[1] / SIZE[1], PICTURE[0] / SIZE[0]] * 2)
    boxes, scores, kind = torch.cat(every) * scale, torch.cat(certain), torch.cat(kinds)
    kept = nms(boxes, scores, kind, 0.5)[:100]
    return Found(boxes[kept], scores[kept], kind[kept])


def loaded(state: State, folder: Path) -> Detector:
    model = davit.load(saved(state, folder / "theirs.pth"), window=7)
    assert isinstance(model, Detector)
    return model


def answer(model: Detector, size=SIZE, picture=PICTURE) -> tuple[Found, list[Tensor]]:
    """What our model finds in a random image, and the backbone's maps of it."""
    image = torch.randn(1, 3, *size)
    found = to_detections(model(image)[0], size, picture, model.classes)
    maps = model.backbone(F.pad(image, (0, -size[1] % 32, 0, -size[0] % 32)))
    return Found(found.boxes, found.scores, found.indices, found.masks), [x[0] for x in maps]


def common(ours: Found, theirs: Found) -> float:
    """The share of objects that both have; a few may differ where two scores or an overlap and its limit are a tie."""
    theirs = theirs.solid()
    assert len(theirs.boxes) > 20
    found = 0
    for i, (box, score, kind) in enumerate(zip(ours.boxes, ours.scores, ours.classes, strict=True)):
        near = (theirs.boxes - box).abs().amax(1) < 0.02
        same = (near & ((theirs.scores - score).abs() < 1e-3) & (theirs.classes == kind)).nonzero().flatten()
        if len(same) and ours.masks is not None and theirs.masks is not None:
            probable = theirs.masks[same[0]]
            sure = (probable - 0.5).abs() > 1e-3
            assert sure.float().mean() > 0.9
            assert torch.equal(ours.masks[i][sure], (probable >= 0.5)[sure])
        found += len(same) > 0
    return found / max(len(ours.boxes), len(theirs.boxes))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_converted_detector_answers_as_mmdets_formulas(kind: str, tmp_path: Path) -> None:
    state = file_of(kind)
    if kind == "retinanet":
        state["bbox_head.retina_cls.bias"] -= 5  # few pairs of anchor and class pass, as in a trained model
    ours, maps = answer(loaded(state, tmp_path))
    theirs = mask_rcnn(state, maps) if kind == "mask_rcnn" else retinanet(state, maps, best_anchors)
    assert common(ours, theirs) > 0.95
    assert len(ours.classes.unique()) > 1
    swapped = state | {
        name: value.roll(1, 0) for name, value in state.items() if "fc_cls" in name or "retina_cls" in name
    }
    other = mask_rcnn(swapped, maps) if kind == "mask_rcnn" else retinanet(swapped, maps, best_anchors)
    assert common(ours, other) < 0.5  # else the test could not fail


@torch.no_grad()
def test_retinanet_differs_only_below_the_thousandth_pair_of_a_level(tmp_path: Path) -> None:
    state = file_of("retinanet")  # every second pair of anchor and class passes
    ours, maps = answer(loaded(state, tmp_path))
    cuts: list[float] = []

    def remembering(scores: Tensor) -> tuple[Tensor, Tensor]:
        row, kind = best_pairs(scores)
        if len(row) == 1000:
            cuts.append(scores[row, kind].min().item())
        return row, kind

    assert common(ours, retinanet(state, maps, remembering)) > 0.95
    assert cuts
    theirs = retinanet(state, maps, best_anchors)
    assert common(ours.only(ours.scores > max(cuts)), theirs.only(theirs.scores > max(cuts))) > 0.95


@torch.no_grad()
def test_of_empty_proposals_come_only_boxes_without_area(tmp_path: Path) -> None:
    state, size = file_of("mask_rcnn"), (32, 64)
    state["rpn_head.rpn_reg.bias"][::4] += 1.0  # some are shifted out of the image
    model = loaded(state, tmp_path)
    model.head.config = replace(model.head.config, detections=10**6)
    ours, maps = answer(model, size, size)
    theirs = mask_rcnn(state, maps, 10**6, size, size, keep_empty=True)
    assert len(theirs.boxes) > len(theirs.solid().boxes)
    assert common(ours, theirs) > 0.95
