"""Whether an int8 file may stay: near enough to its model, faster than float32, and as right."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from davit.inference.backends.choosing import timed
from davit.models.detections import DetectorOutput

AGREEMENT = 0.9  # share of the answers on real pictures that must be the float32 file's own
OVERLAP = 0.5  # of boxes that stand for one object
SURE = 0.5  # score of objects that count
ROUNDS = 7

Answers = Callable[[Tensor], Any]  # the outputs of a backend, or the four maps of a backbone


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What labelled images say.

    Attributes:
        metric: name of the score.
        images: how many.
        float32: score of the float32 file, in 0 to 1.
        int8: score of the int8 file.
    """

    metric: str
    images: int
    float32: float
    int8: float

    @property
    def drop(self) -> float:
        """Points of a hundred that int8 loses."""
        return 100 * (self.float32 - self.int8)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """An int8 file beside the float32 file of the same format.

    Attributes:
        calibrated: images that int8 was fitted to.
        images: pictures that both answered for `agreement`.
        agreement: share of equal answers: best classes, best classes of positions, or objects; None where a backbone
            gives none.
        batch: images of a call that was timed.
        milliseconds: of a call, median: float32 and int8.
        speedup: how much faster int8 was, the median of rounds in turns.
        scores: on labelled images; None where there are none.
        max_drop: points of a hundred that may be lost.
    """

    calibrated: int
    images: int
    agreement: float | None
    batch: int
    milliseconds: tuple[float, float]
    speedup: float
    scores: Scores | None
    max_drop: float

    @property
    def failures(self) -> list[str]:
        """What is wrong, a line each."""
        lines = []
        if self.agreement is not None and not self.agreement >= AGREEMENT:
            lines.append(
                f"int8 gives {100 * self.agreement:.1f} % of the float32 answers on {self.images} pictures, wanted are "
                f"{100 * AGREEMENT:.0f} %"
            )
        if not self.speedup >= 1:
            before, after = self.milliseconds
            lines.append(
                f"int8 is slower than float32: {after:.1f} ms for a batch of {self.batch}, not {before:.1f} ms"
            )
        if self.scores and not self.scores.drop <= self.max_drop:
            lines.append(
                f"int8 loses {self.scores.drop:.2f} points of {self.scores.metric} on {self.scores.images} images, "
                f"allowed are {self.max_drop:g}"
            )
        return lines


def agreement(kind: str, float32: Answers, int8: Answers, pictures: Sequence[Tensor]) -> float | None:
    """Share of the answers for pictures (C, H, W) that are equal; None for a kind of model that gives no answers."""
    equal = total = 0
    for pixels in pictures:
        first, second = float32(pixels[None]), int8(pixels[None])
        if kind == "detector":
            paired, objects = _paired(first[0], second[0])
            equal, total = equal + 2 * paired, total + objects
        elif kind in ("classifier", "segmenter"):
            same = first.argmax(1) == second.argmax(1)
            equal, total = equal + int(same.sum()), total + same.numel()
    return equal / total if total else None


def _paired(first: DetectorOutput, second: DetectorOutput) -> tuple[int, int]:
    """Sure objects of one that have a partner in the other, and objects of both."""
    from torchvision.ops import box_iou

    (boxes, classes), (others, theirs) = (
        (one.boxes[one.scores >= SURE], one.indices[one.scores >= SURE]) for one in (first, second)
    )
    near = (box_iou(boxes, others) >= OVERLAP) & (classes[:, None] == theirs)
    paired = 0
    for row in range(len(near)):
        candidates = near[row].nonzero().flatten().tolist()
        if candidates:
            paired += 1
            near[:, candidates[0]] = False
    return paired, len(boxes) + len(others)


def race(float32: Answers, int8: Answers, images: Tensor) -> tuple[tuple[float, float], float]:
    """Milliseconds of a call of each, and how much faster int8 is, by turns after one call that does not count."""
    for run in (float32, int8):
        run(images)
    rounds = [(timed(lambda: float32(images)), timed(lambda: int8(images))) for _ in range(ROUNDS)]
    first, second = (1e3 * statistics.median(column) for column in zip(*rounds, strict=True))
    return (first, second), statistics.median(before / after for before, after in rounds)


def same_size(pictures: Sequence[Tensor], most: int) -> Tensor:
    """As many pictures as there are of the first one's size, in a batch of `most` at most."""
    return torch.stack([pixels for pixels in pictures if pixels.shape == pictures[0].shape][:most])
