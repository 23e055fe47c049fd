"""Whether an exported file computes what its model computes."""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from davit.inference.judging import Judgement
from davit.models.detections import DetectorOutput
from davit.models.detector import Detector
from davit.models.upernet import SegmenterOutput
from davit.preprocessing import Preprocessing
from davit.weights.load import LoadedModel
from davit.weights.save import header_of

Precision = Literal["float32", "int8"]

OUTPUTS = 1e-4  # of logits and maps, over the largest of the image or 1
SCORES = 1e-4
BOXES = 1e-2  # pixels
MASKS = 1e-3  # of probabilities
# Share of objects that may be found by one of the two only: where two boxes overlap by the threshold of a non-maximum
# suppression, the last bit decides which stays, of the proposals too. Wrong files miss most.
UNMATCHED = 0.01
SIZES = ((97, 130, 2), (64, 200, 1), (160, 128, 7), (33, 45, 3))  # height, width, batch; all but the third pad windows


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One batch of images through both.

    Attributes:
        images: what they were.
        shape: of the images, (B, C, H, W).
        differences: the largest difference of each output.
        objects: how many the model found, for detectors.
        unmatched: objects that only one of the two found, those at the edge of being left out not counted.
        failure: what is wrong; None where both agree, but for unmatched objects, which are judged over all batches.
    """

    images: str
    shape: tuple[int, ...]
    differences: dict[str, float]
    objects: int | None = None
    unmatched: int | None = None
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What was compared, and how far apart the answers were.

    Attributes:
        file: the exported file.
        tolerances: the largest differences that pass; none for int8, which is judged on pictures.
        comparisons: a batch each.
        judgement: of an int8 file.
    """

    file: str
    tolerances: dict[str, float]
    comparisons: tuple[Comparison, ...] = field(default=())
    judgement: Judgement | None = None

    @property
    def failures(self) -> list[str]:
        """What is wrong: a line for each batch that differs, for objects that one of the two found, for int8."""
        lines = [f"{one.images} {one.shape}: {one.failure}" for one in self.comparisons if one.failure]
        if self.tolerances and self.unmatched > UNMATCHED * (self.objects or 0):
            lines.append(f"{self.unmatched} objects were found by one of the two only, the model found {self.objects}")
        return lines + (self.judgement.failures if self.judgement else [])

    @property
    def largest(self) -> dict[str, float]:
        """The largest difference of each output over all batches."""
        names = dict.fromkeys(name for one in self.comparisons for name in one.differences)
        return {name: max(one.differences.get(name, 0.0) for one in self.comparisons) for name in names}

    @property
    def unmatched(self) -> int:
        """How many objects only one of the two found, over all batches."""
        return sum(one.unmatched or 0 for one in self.comparisons)

    @property
    def objects(self) -> int | None:
        """How many objects were compared; None for models that find none."""
        counts = [one.objects for one in self.comparisons if one.objects is not None]
        return sum(counts) if counts else None


def compare(
    model: LoadedModel,
    exported: Callable[[Tensor], Any],
    file: str,
    pictures: Iterable[tuple[str, Tensor]] = (),
    *,
    precision: Precision = "float32",
) -> Parity:
    """Run made-up images of several sizes and batches, and pictures, through a model and its exported file.

    Args:
        model: in evaluation mode.
        exported: gives the outputs of a backend, or the four maps of a backbone.
        file: what to call the exported file.
        pictures: names, and images (C, H, W) as preprocessing makes them.
        precision: of the exported file; one in int8 must give finite outputs of the right shape, whatever their size.
    """
    compared: list[Comparison] = []
    channels = header_of(model, {}).backbone.in_channels
    for height, width, batch in _sizes(model.preprocessing):
        images = _made_up(batch, channels, height, width)
        compared.append(_compared(model, exported, "made up", images, precision))
    for name, pixels in pictures:
        compared.append(_compared(model, exported, name, pixels[None], precision))
    detects = isinstance(model, Detector)
    objects = {"boxes": BOXES, "scores": SCORES, "masks": MASKS, "unmatched": UNMATCHED}
    tolerances = {} if precision == "int8" else objects if detects else {"outputs": OUTPUTS}
    return Parity(file=file, tolerances=tolerances, comparisons=tuple(compared))


def _sizes(preprocessing: Preprocessing | None) -> list[tuple[int, int, int]]:
    """The size that the model is meant for, and some others."""
    height, width = preprocessing.size if preprocessing else (224, 224)
    return [*SIZES, (height, width, 1)]


def _made_up(batch: int, channels: int, height: int, width: int) -> Tensor:
    """Coarse and fine noise, which has something for every level of a model."""
    generator = torch.Generator().manual_seed(height * width + batch)
    coarse = torch.randn(batch, channels, height // 32 + 2, width // 32 + 2, generator=generator)
    fine = torch.randn(batch, channels, height, width, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bilinear") + 0.3 * fine


def _compared(
    model: LoadedModel, exported: Callable[[Tensor], Any], name: str, images: Tensor, precision: Precision
) -> Comparison:
    with torch.inference_mode():
        wanted: Any = model(images)
    shape = tuple(images.shape)
    try:
        found = exported(images)
    except Exception as error:  # engines have classes of their own
        reason = f"it cannot be computed: {str(error).splitlines()[0]}"
        return Comparison(images=name, shape=shape, differences={}, failure=reason)
    if isinstance(model, Detector):
        compared = _detections(wanted, found, name, shape, model.config.head.score_threshold)
        return compared if precision == "float32" else _of_int8(compared, found)
    if isinstance(wanted, SegmenterOutput):
        wanted = wanted.logits
    pairs = (
        {"logits": (wanted, found)}
        if isinstance(wanted, Tensor)
        else {f"map{stride}": pair for stride, *pair in zip((4, 8, 16, 32), wanted, found, strict=True)}
    )
    differences: dict[str, float] = {}
    wrong: list[str] = []
    for output, (ours, theirs) in pairs.items():
        if ours.shape != theirs.shape:
            wrong.append(f"{output} are {tuple(theirs.shape)}, the model's {tuple(ours.shape)}")
            continue
        differences[output] = float((ours - theirs).abs().max())
        limit = OUTPUTS * max(1.0, float(ours.abs().max())) if precision == "float32" else sys.float_info.max
        if not differences[output] <= limit:  # a NaN is no equal
            wrong.append(f"{output} differ by {differences[output]:.2g}, allowed are {limit:.2g}")
    return Comparison(images=name, shape=shape, differences=differences, failure="; ".join(wrong) or None)


def _detections(
    wanted: Sequence[DetectorOutput], found: Sequence[DetectorOutput], name: str, shape: tuple[int, ...], cut: float
) -> Comparison:
    differences: dict[str, float] = {}
    unmatched = 0
    for ours, theirs in zip(wanted, found, strict=True):
        first, second = match(ours, theirs)
        pairs = {"boxes": (ours.boxes, theirs.boxes), "scores": (ours.scores, theirs.scores)}
        if ours.masks is not None and theirs.masks is not None:
            pairs["masks"] = (ours.masks, theirs.masks)
        for output, (a, b) in pairs.items():
            largest = float((a[first] - b[second]).abs().nan_to_num(math.inf).max()) if len(first) else 0.0
            differences[output] = max(differences.get(output, 0.0), largest)
        if (ours.masks is None) != (theirs.masks is None):
            differences["masks"] = math.inf
        unmatched += _alone(ours, first, cut) + _alone(theirs, second, cut)
    objects = sum(len(one.scores) for one in wanted)
    masks = differences.get("masks", 0.0)
    return Comparison(
        images=name,
        shape=shape,
        differences=differences,
        objects=objects,
        unmatched=unmatched,
        failure=None if masks <= MASKS else f"masks differ by {masks:.2g}, allowed are {MASKS:.2g}",
    )


def _of_int8(compared: Comparison, found: Sequence[DetectorOutput]) -> Comparison:
    """Ask of int8 objects only that they are numbers: which there are is judged on pictures."""
    finite = all(bool(part.isfinite().all()) for one in found for part in one if part is not None)
    return replace(compared, failure=None if finite else "boxes, scores or masks are no numbers")


def match(ours: DetectorOutput, theirs: DetectorOutput) -> tuple[list[int], list[int]]:
    """Pair equal objects: of one class, scores within `SCORES`, edges within `BOXES`. Order may differ among equals."""
    first: list[int] = []
    second: list[int] = []
    near = (ours.boxes[:, None] - theirs.boxes).abs().amax(-1) <= BOXES
    near &= (ours.scores[:, None] - theirs.scores).abs() <= SCORES
    near &= ours.indices[:, None] == theirs.indices
    free = torch.ones(len(theirs.scores), dtype=torch.bool)
    for index, row in enumerate(near):
        candidates = (row & free).nonzero().flatten().tolist()
        if candidates:
            first.append(index)
            second.append(candidates[0])
            free[candidates[0]] = False
    return first, second


def _alone(output: DetectorOutput, matched: list[int], cut: float) -> int:
    """Count the objects without a partner; at the threshold, and behind the last place, rounding may decide."""
    alone = torch.ones(len(output.scores), dtype=torch.bool)
    alone[matched] = False
    last = float(output.scores.min()) if len(output.scores) else cut
    safe = (output.scores - cut).abs() > SCORES
    safe &= (output.scores - last).abs() > SCORES
    return int((alone & safe).sum())
