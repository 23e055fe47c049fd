"""How far predicted and true classes of pixels agree, from exact counts over all pictures."""

from collections.abc import Sequence

import torch
from torch import Tensor

from davit.evaluation.accuracy import DivergedError
from davit.evaluation.evaluate import Exchange
from davit.models.class_map import pixel_logits
from davit.models.segmenter_config import IGNORED
from davit.structures import Picture


class MeanIoU:
    """Counts pixels by true and predicted class.

    Classes that neither the truth nor a prediction holds have no intersection over union, and classes that the truth
    lacks have no accuracy; the means leave them out (as mmsegmentation's do).

    Attributes:
        names: name of each class.
        confusion: pixels of each true class (row) by predicted class (column), (classes, classes) int64.
        pictures: how many pictures were counted, int64.
    """

    def __init__(self, num_classes: int, names: Sequence[str] = ()) -> None:
        """Begin at zero; classes without `names` go by their index.

        Raises:
            ValueError: not one name for each class.
        """
        if not 1 <= num_classes <= IGNORED:
            raise ValueError(f"num_classes must lie in 1 to {IGNORED}, got {num_classes}")
        self.names = tuple(names) or tuple(str(index) for index in range(num_classes))
        if len(set(self.names)) != num_classes or len(self.names) != num_classes:
            raise ValueError(f"{len(self.names)} names, {len(set(self.names))} of them distinct: need {num_classes}")
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.pictures = torch.zeros((), dtype=torch.int64)

    def update(self, results: Sequence[Tensor] | Tensor, targets: Sequence[Picture]) -> None:
        """Count pictures.

        Args:
            results: for each picture the class indices of its pixels, (height, width), or logits of the whole picture
                at any size, (classes, H, W), which are interpolated to that of the picture.
            targets: the pictures, with their true classes.

        Raises:
            ValueError: another number of results than pictures, a size that is not the picture's, or a class index
                that is no class.
            DivergedError: logits that are NaN.
        """
        if len(results) != len(targets):
            raise ValueError(f"{len(results)} results for {len(targets)} pictures")
        counts = [self._count(result, picture) for result, picture in zip(results, targets, strict=True)]
        for confusion in counts:  # all of a batch, or nothing
            self.confusion += confusion
        self.pictures += len(counts)

    def _count(self, result: Tensor, picture: Picture) -> Tensor:
        """Count one picture."""
        truth, classes = picture.classes, len(self.names)
        if truth is None:
            raise ValueError(f"picture {picture.index} has no true classes to compare with")
        found = self._classes(result, picture) if result.is_floating_point() else result
        if found.shape != truth.shape:
            raise ValueError(
                f"picture {picture.index} has {tuple(truth.shape)} labels (height, width), its result has "
                f"{tuple(found.shape)}"
            )
        found, truth = found.cpu(), truth.cpu()
        counted = truth != IGNORED
        pairs = [found[counted].long(), truth[counted].long()]
        for labels, whose in zip(pairs, ("predicted", "true"), strict=True):
            wrong = labels[(labels < 0) | (labels >= classes)]
            if len(wrong):
                raise ValueError(
                    f"picture {picture.index} has the {whose} label {int(wrong[0])} in {int((wrong == wrong[0]).sum())}"
                    f" pixels; classes are 0 to {classes - 1}, and {IGNORED} where none counts"
                )
        return torch.bincount(pairs[1] * classes + pairs[0], minlength=classes**2).view(classes, classes)

    def _classes(self, logits: Tensor, picture: Picture) -> Tensor:
        """The highest class at each pixel of a picture."""
        if logits.ndim != 3 or len(logits) != len(self.names):
            raise ValueError(f"expected logits ({len(self.names)}, H, W), got {tuple(logits.shape)}")
        if logits.isnan().any():
            raise DivergedError("the model computed NaN, which has no highest class")
        return pixel_logits(logits[None], picture.size)[0].argmax(0)

    def merge(self, exchange: Exchange) -> None:
        """Add the counts of all processes, once, when each has counted its share."""
        exchange.sum(self.confusion)
        exchange.sum(self.pictures)

    def compute(self) -> dict[str, float]:
        """Return `miou`, `aacc` (share of right pixels) and `macc` (mean share over the classes), and `count`.

        Raises:
            ValueError: no pixel was counted.
        """
        if not self.confusion.any():
            raise ValueError(
                f"none of the pixels of {int(self.pictures)} pictures has a class that counts, so there is no score"
            )
        right = int(self.confusion.diagonal().sum())
        scores = self.per_class().values()
        return {
            "miou": _mean([score["iou"] for score in scores]),
            "aacc": right / int(self.confusion.sum()),
            "macc": _mean([score["accuracy"] for score in scores]),
            "count": int(self.pictures),
        }

    def per_class(self) -> dict[str, dict[str, float | None]]:
        """Return `iou`, `accuracy` and true `pixels` of each class by name; None where there is no such share."""
        right, true = self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist()
        found = self.confusion.sum(0).tolist()
        return {
            name: {"iou": _share(hits, t + f - hits), "accuracy": _share(hits, t), "pixels": t}
            for name, hits, t, f in zip(self.names, right, true, found, strict=True)
        }


def check_labels(histogram: Tensor, num_classes: int) -> None:
    """Refuse masks whose labels cannot be meant for so many classes.

    Args:
        histogram: how many pixels have each label, (256,), after whatever the data set does to labels.
        num_classes: classes of the model.

    Raises:
        ValueError: no pixel counts, or a label is no class; with the likely cause.
    """
    pixels = histogram.tolist()
    total, ignored = sum(pixels), sum(pixels[IGNORED:])
    wrong = [label for label in range(num_classes, min(len(pixels), IGNORED)) if pixels[label]]
    if total == ignored:
        raise ValueError(
            f"all {total} pixels are labelled {IGNORED}, so no pixel counts. If 0 was taken for 'no class',"
            " as in ADE20K's files, these masks may hold nothing else, or count their classes from 0"
        )
    if not wrong:
        return
    count = sum(pixels[label] for label in wrong)
    labels = ", ".join(str(label) for label in wrong[:5]) + (", ..." if len(wrong) > 5 else "")
    cause = (
        f"They may count from 1, with 0 for 'no class' (as ADE20K's files do): take 1 off, and make 0 {IGNORED}"
        if wrong == [num_classes]
        else "The masks may be of other classes, or hold colours instead of class indices"
    )
    raise ValueError(
        f"{count} of {total} pixels have labels that are no class ({labels}); classes are 0 to {num_classes - 1}, and "
        f"{IGNORED} where none counts. {cause}"
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(shares: list[float | None]) -> float:
    known = [share for share in shares if share is not None]
    return sum(known) / len(known)
