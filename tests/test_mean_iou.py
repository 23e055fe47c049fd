"""Mean intersection over union: exact counts, the same as scikit-learn's, and labels that cannot be right."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, jaccard_score, recall_score
from torch import Tensor

from davit.evaluation.mean_iou import MeanIoU, check_labels
from davit.structures import Picture


def picture(classes: Tensor, index: int = 0) -> Picture:
    return Picture(index=index, size=(classes.shape[0], classes.shape[1]), classes=classes)


def random_pictures(classes: int, count: int, ignored: float = 0.2) -> tuple[list[Tensor], list[Picture]]:
    """Predicted maps and pictures of several sizes, some pixels of which do not count."""
    results, targets = [], []
    for index in range(count):
        size = (7 + index, 11 + 3 * index % 5)
        truth = torch.randint(0, classes, size, dtype=torch.uint8)
        found = torch.where(torch.rand(size) < 0.6, truth, torch.randint(0, classes, size, dtype=torch.uint8))
        truth[torch.rand(size) < ignored] = 255
        results.append(found)
        targets.append(picture(truth, index))
    return results, targets


def flat(results: list[Tensor], targets: list[Picture]) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted classes of all pixels that count."""
    truth = torch.cat([target.classes.flatten() for target in targets if target.classes is not None])
    found = torch.cat([result.flatten() for result in results])
    return truth[truth != 255].numpy(), found[truth != 255].numpy()


@settings(max_examples=40, deadline=None)
@given(classes=st.integers(1, 9), count=st.integers(1, 4), seed=st.integers(0, 999), half=st.integers(0, 4))
def test_equals_scikit_learn_however_it_is_shared(classes: int, count: int, seed: int, half: int) -> None:
    torch.manual_seed(seed)
    results, targets = random_pictures(classes, count)
    metric = MeanIoU(classes)
    metric.update(results, targets)
    truth, found = flat(results, targets)
    assert np.array_equal(metric.confusion, confusion_matrix(truth, found, labels=range(classes)))
    seen, true = sorted(set(truth) | set(found)), sorted(set(truth))
    scores = metric.compute()
    assert scores["miou"] == pytest.approx(jaccard_score(truth, found, labels=seen, average="macro"), rel=1e-12)
    assert scores["macc"] == pytest.approx(recall_score(truth, found, labels=true, average="macro"), rel=1e-12)
    assert scores["aacc"] == (truth == found).mean()
    assert scores["count"] == count

    parts = [MeanIoU(classes), MeanIoU(classes)]
    parts[0].update(results[:half], targets[:half])
    parts[1].update(results[half:], targets[half:])
    parts[0].merge(Together(parts))
    assert parts[0].compute() == scores
    assert torch.equal(parts[0].confusion, metric.confusion)


class Together:
    """The exchange of two processes, seen from the first; tensors come in the same order on both."""

    def __init__(self, parts: list[MeanIoU]) -> None:
        self.theirs = iter([parts[1].confusion, parts[1].pictures])

    def sum(self, values: Tensor, /) -> Tensor:
        """Add what the second process has."""
        return values.add_(next(self.theirs))


def test_classes_that_occur_nowhere_do_not_count() -> None:
    metric = MeanIoU(4, names=("wall", "sky", "tree", "road"))
    truth = torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8)
    found = torch.tensor([[0, 1, 1, 2]], dtype=torch.uint8)  # tree is predicted where nothing counts
    metric.update([found], [picture(truth)])
    assert metric.compute() == {"miou": 0.5, "aacc": 2 / 3, "macc": 0.75, "count": 1}
    assert metric.per_class() == {
        "wall": {"iou": 0.5, "accuracy": 0.5, "pixels": 2},
        "sky": {"iou": 0.5, "accuracy": 1.0, "pixels": 1},
        "tree": {"iou": None, "accuracy": None, "pixels": 0},
        "road": {"iou": None, "accuracy": None, "pixels": 0},
    }
    metric.update([torch.full((1, 1), 3)], [picture(torch.zeros(1, 1, dtype=torch.uint8), 1)])
    assert metric.per_class()["road"] == {"iou": 0.0, "accuracy": None, "pixels": 0}  # predicted, so it counts now
    assert metric.compute()["miou"] == pytest.approx((1 / 3 + 0.5 + 0) / 3)
    assert metric.compute()["count"] == 2


def test_logits_are_interpolated_to_the_picture() -> None:
    truth = torch.tensor([[0, 0, 1, 1]] * 2, dtype=torch.uint8)
    logits = torch.tensor([[[1.0, 0.0]], [[0.0, 1.5]]])  # two classes at 1x2; interpolated, class 1 wins from 0.4 on
    metric = MeanIoU(2)
    metric.update(logits[None], [picture(truth)])
    assert metric.confusion.tolist() == [[4, 0], [0, 4]]
    steeper = torch.tensor([[[1.0, 0.0]], [[0.0, 4.0]]])  # class 1 wins from 0.2 on
    metric = MeanIoU(2)
    metric.update([steeper], [picture(truth)])
    assert metric.confusion.tolist() == [[2, 2], [0, 4]]


def test_what_cannot_be_counted_is_refused_and_nothing_of_it_counted() -> None:
    metric = MeanIoU(3)
    fine = torch.zeros(2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="none of the pixels of 0 pictures"):
        metric.compute()
    wrong = fine.clone()
    wrong[0, 1] = 3
    with pytest.raises(ValueError, match=r"picture 5 has the true label 3 in 1 pixels; classes are 0 to 2"):
        metric.update([fine, fine], [picture(fine), picture(wrong, 5)])
    for value in (3, 255, -1):
        with pytest.raises(ValueError, match=f"picture 5 has the predicted label {value} in 4"):
            metric.update([torch.full((2, 2), value)], [picture(fine, 5)])
    with pytest.raises(ValueError, match=r"picture 0 has \(2, 2\) labels.*\(2, 3\)"):
        metric.update([torch.zeros(2, 3, dtype=torch.uint8)], [picture(fine)])
    with pytest.raises(ValueError, match=r"expected logits \(3, H, W\), got \(4, 2, 2\)"):
        metric.update([torch.zeros(4, 2, 2)], [picture(fine)])
    with pytest.raises(ValueError, match="NaN"):
        metric.update([torch.full((3, 2, 2), torch.nan)], [picture(fine)])
    with pytest.raises(ValueError, match="1 results for 2 pictures"):
        metric.update([fine], [picture(fine), picture(fine, 1)])
    with pytest.raises(ValueError, match="picture 4 has no true classes"):
        metric.update([fine], [Picture(index=4, size=(2, 2))])
    assert not metric.confusion.any()
    assert not metric.pictures
    with pytest.raises(ValueError, match="2 names, 1 of them distinct: need 2"):
        MeanIoU(2, names=("a", "a"))
    metric.update([fine], [picture(torch.full_like(fine, 255))])
    with pytest.raises(ValueError, match="none of the pixels of 1 pictures"):
        metric.compute()


def histogram(*labels: int) -> Tensor:
    return torch.bincount(torch.tensor(labels), minlength=256)


def test_labels_that_cannot_be_meant_say_why() -> None:
    check_labels(histogram(0, 149, 149, 255), 150)
    check_labels(histogram(7), 150)
    with pytest.raises(ValueError, match=r"1 of 4 pixels .* no class \(150\).*0 to 149.*count from 1.*ADE20K"):
        check_labels(histogram(0, 1, 150, 255), 150)
    with pytest.raises(ValueError, match=r"6 of 7 .*\(150, 160, 170, 180, 190, \.\.\.\).*colours"):
        check_labels(histogram(0, 150, 160, 170, 180, 190, 200), 150)
    with pytest.raises(ValueError, match=r"all 3 pixels are labelled 255.*'no class', as in ADE20K.*from 0"):
        check_labels(histogram(255, 255, 255), 150)
    check_labels(histogram(0, 254), 255)
