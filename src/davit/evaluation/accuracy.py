"""How often the right class is the first, or among the first five: counted in integers, so that sums are exact."""

from collections.abc import Sequence

import torch
from torch import Tensor

_TOP = 5


class DivergedError(ValueError):
    """A model computes numbers that are not finite."""


class Accuracy:
    """Counts for each class, and which classes are taken for which.

    Attributes:
        count: images of each class, (classes,) int64.
        top1: of these, those whose class scored highest.
        top5: those whose class was among the five highest, or among all where there are fewer.
        confusion: with `confusion=True`, images of each true class (row) by predicted class (column).
    """

    def __init__(self, classes: int, *, confusion: bool = False) -> None:
        """Begin at zero; a confusion matrix takes classes x classes numbers."""
        if classes < 1:
            raise ValueError(f"classes must be at least 1, got {classes}")
        self.count = torch.zeros(classes, dtype=torch.int64)
        self.top1 = torch.zeros(classes, dtype=torch.int64)
        self.top5 = torch.zeros(classes, dtype=torch.int64)
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64) if confusion else None

    def update(self, logits: Tensor, targets: Tensor) -> None:  # (B, classes), (B,)
        """Count a batch.

        Raises:
            ValueError: another number of classes, or a target that is no class.
            DivergedError: logits that are NaN.
        """
        classes = len(self.count)
        if logits.ndim != 2 or logits.shape[1] != classes or targets.shape != logits.shape[:1]:
            raise ValueError(
                f"expected logits (B, {classes}) and targets (B,), got {tuple(logits.shape)} and {tuple(targets.shape)}"
            )
        if logits.isnan().any():
            raise DivergedError("the model computed NaN, which has no highest class")
        best = logits.topk(min(_TOP, classes)).indices.cpu()
        targets = targets.cpu()
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
            raise ValueError(
                f"targets must lie in 0 to {classes - 1}, got {int(targets.min())} to {int(targets.max())}"
            )
        hits = best == targets[:, None]
        self.count += torch.bincount(targets, minlength=classes)
        self.top1 += torch.bincount(targets[hits[:, 0]], minlength=classes)
        self.top5 += torch.bincount(targets[hits.any(1)], minlength=classes)
        if self.confusion is not None:
            pairs = torch.bincount(targets * classes + best[:, 0], minlength=classes * classes)
            self.confusion += pairs.view(classes, classes)

    def counters(self) -> list[Tensor]:
        """Return the integer tensors themselves: summing each over all ranks, in place, merges their counts."""
        counters = [self.count, self.top1, self.top5]
        return counters if self.confusion is None else [*counters, self.confusion]

    def merge(self, other: "Accuracy") -> None:
        """Add the counts of another part of the data."""
        for mine, theirs in zip(self.counters(), other.counters(), strict=True):
            mine += theirs

    def compute(self) -> dict[str, float]:
        """Return `top1` and `top5` as shares of all images, and their `count`.

        Raises:
            ValueError: nothing was counted.
        """
        count = int(self.count.sum())
        if count == 0:
            raise ValueError("no image was scored, so there is no accuracy")
        return {"top1": int(self.top1.sum()) / count, "top5": int(self.top5.sum()) / count, "count": count}

    def per_class(self, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
        """Return `count` and `top1` of each class by name; `top1` is None for a class without images.

        Raises:
            ValueError: not one name for each class.
        """
        if len(names) != len(self.count):
            raise ValueError(f"{len(names)} names for {len(self.count)} classes")
        counts = zip(names, self.count.tolist(), self.top1.tolist(), strict=True)
        return {name: {"count": n, "top1": hits / n if n else None} for name, n, hits in counts}
