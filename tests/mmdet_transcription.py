"""mmdet 2's formulas written out position by position in float64, to compare the detectors with."""

import math

import numpy as np
import torch

from davit.models.detect_matching import BACKGROUND, NEITHER


def mmdet_anchors(height: int, width: int, strides, scales, ratios) -> np.ndarray:
    """AnchorGenerator of mmdet 2 with its defaults: ratios outside, scales inside, centre offset 0."""
    boxes = []
    for stride in strides:
        for y in range(math.ceil(height / stride)):
            for x in range(math.ceil(width / stride)):
                for ratio in ratios:
                    for scale in scales:
                        w, h = stride / math.sqrt(ratio) * scale, stride * math.sqrt(ratio) * scale
                        cx, cy = x * stride, y * stride
                        boxes.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    return np.array(boxes)


def mmdet_decode(box, offsets, deviations) -> list[float]:
    """delta2bbox of mmdet 2: both limits on the size."""
    limit = abs(math.log(16 / 1000))
    dx, dy, dw, dh = (value * deviation for value, deviation in zip(offsets, deviations, strict=True))
    dw, dh = max(-limit, min(limit, dw)), max(-limit, min(limit, dh))
    w, h = box[2] - box[0], box[3] - box[1]
    cx, cy = (box[0] + box[2]) / 2 + dx * w, (box[1] + box[3]) / 2 + dy * h
    w, h = w * math.exp(dw), h * math.exp(dh)
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def bilinear(x: np.ndarray, row: float, column: float) -> np.ndarray:
    """Value of maps (C, H, W) between their positions, as RoIAlign takes it at the borders."""
    _, H, W = x.shape
    if row < -1 or row > H or column < -1 or column > W:
        return np.zeros(len(x))
    row, column = min(max(row, 0.0), H - 1), min(max(column, 0.0), W - 1)
    top, left = int(row), int(column)
    bottom, right = min(top + 1, H - 1), min(left + 1, W - 1)
    v, u = row - top, column - left
    upper = x[:, top, left] * (1 - u) + x[:, top, right] * u
    lower = x[:, bottom, left] * (1 - u) + x[:, bottom, right] * u
    return upper * (1 - v) + lower * v


def mmcv_roi_align(x: np.ndarray, box, stride: float, side: int) -> np.ndarray:
    """RoIAlign with `aligned=True, sampling_ratio=0`: half a pixel back, as many samples as a bin has positions."""
    left, top, right, bottom = (edge / stride - 0.5 for edge in box)
    bin_h, bin_w = (bottom - top) / side, (right - left) / side
    rows, columns = max(math.ceil(bin_h), 0), max(math.ceil(bin_w), 0)
    result = np.zeros((len(x), side, side))
    for i in range(side):
        for j in range(side):
            for a in range(rows):
                for b in range(columns):
                    row, column = top + (i + (a + 0.5) / rows) * bin_h, left + (j + (b + 0.5) / columns) * bin_w
                    result[:, i, j] += bilinear(x, row, column)
    return result / max(rows * columns, 1)


def mmdet_assign(overlaps: torch.Tensor, positive: float, negative: float, least: float) -> list[int]:
    """MaxIoUAssigner: -1 for background and -2 for neither, here."""
    result = [NEITHER] * overlaps.shape[1]
    for box in range(overlaps.shape[1]):
        value, owner = overlaps[:, box].max(0)
        if value < negative:
            result[box] = BACKGROUND
        if value >= positive:
            result[box] = int(owner)
    for owner in range(overlaps.shape[0]):
        best = overlaps[owner].max()
        if best >= least and best > 0:  # ours: mmdet gives an object that nothing touches all that touches nothing
            for box in (overlaps[owner] == best).nonzero().flatten().tolist():
                result[box] = owner
    return result
