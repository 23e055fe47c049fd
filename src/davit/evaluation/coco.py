"""COCO's average precision of boxes and masks, as faster-coco-eval computes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from davit.evaluation.accuracy import DivergedError
from davit.evaluation.evaluate import Exchange
from davit.structures import Detections, Picture, encode_mask

_SIZES = ("small", "medium", "large")  # up to 32 x 32, up to 96 x 96, and above
_MOST = 2  # COCO counts the best 1, 10 or 100 objects of each class in a picture: the last of these


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What was found in one picture: (N, 4) float32 left, top, right, bottom; (N,) each; and compressed masks."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    indices: NDArray[np.int64]
    masks: tuple[dict[str, Any], ...]


class CocoMetric:
    """Average precision over all pictures of some annotations, in the pictures' own pixels.

    The numbers are those of pycocotools: mask sizes are measured on masks, and of each class only the best 100 objects
    of a picture count.
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        category_ids: Sequence[int],
        masks: bool,
        *,
        allow_missing: bool = False,
    ) -> None:
        """Begin with no picture scored.

        Args:
            ground_truth: JSON values in COCO's format: images, annotations with area and iscrowd, categories.
            category_ids: id of each class there.
            masks: score masks as well as boxes.
            allow_missing: score those pictures alone that were seen; otherwise, `compute` insists on all.

        Raises:
            ValueError: a class whose id is no category.
        """
        self._truth, self._category_ids, self._masks = ground_truth, tuple(category_ids), masks
        self._allow_missing = allow_missing
        names = {category["id"]: category["name"] for category in ground_truth["categories"]}
        if lost := [number for number in self._category_ids if number not in names]:
            raise ValueError(f"category {lost[0]} of the classes is none of the ground truth's")
        self._names = [names[number] for number in self._category_ids]
        self._found: dict[int, _Found] = {}
        self._precisions: dict[str, NDArray[np.float64]] = {}

    def update(self, results: Sequence[Detections], targets: Sequence[Picture]) -> None:
        """Take what was found in some pictures.

        Raises:
            ValueError: a picture that is scored twice or not among the annotations, or results in another size than
                its own or without masks.
            DivergedError: boxes or scores that are no finite numbers.
        """
        for found, picture in zip(results, targets, strict=True):
            self._check(found, picture.index)
            self._found[picture.index] = _Found(
                boxes=found.boxes.float().cpu().numpy(),
                scores=found.scores.float().cpu().numpy(),
                indices=found.indices.cpu().numpy(),
                masks=tuple(encode_mask(mask.cpu()) for mask in found.masks) if self._masks else (),  # type: ignore[not-iterable]
            )
        self._precisions = {}

    def merge(self, exchange: Exchange) -> None:
        """Put together what all processes found.

        Raises:
            ValueError: two of them scored the same picture.
        """
        merged: dict[int, _Found] = {}
        for part in exchange.gather(self._found):
            if twice := merged.keys() & part.keys():
                raise ValueError(f"{self._called(min(twice))} was scored by two processes")
            merged |= part
        self._found = merged
        self._precisions = {}

    def compute(self) -> dict[str, float]:
        """Return average precisions as fractions, and `count`, the number of pictures.

        They are `box_ap`, `box_ap50`, `box_ap75`, `box_ap_small`, `box_ap_medium` and `box_ap_large`, and with masks
        the same for `mask`. A size of which there is no object has no precision, so its key is left out.

        Raises:
            ValueError: pictures that were not scored, or no object to find in all of them.
        """
        values: dict[str, float] = {}
        for kind in self._kinds():
            precision = self._precision(kind)
            parts = {
                "": precision[..., 0],
                "50": precision[0, ..., 0],
                "75": precision[5, ..., 0],
                **{f"_{size}": precision[..., place] for place, size in enumerate(_SIZES, 1)},
            }
            means = {f"{kind}_ap{name}": _mean(part) for name, part in parts.items()}
            values |= {name: mean for name, mean in means.items() if mean is not None}
        return values | {"count": len(self._found)}

    def per_class(self) -> dict[str, dict[str, float | None]]:
        """Return `box_ap`, and `mask_ap` with masks, of each class by name; None for a class without objects.

        Raises:
            ValueError: see `compute`.
        """
        order = np.argsort(np.argsort([category["id"] for category in self._truth["categories"]]))
        places = {category["id"]: place for category, place in zip(self._truth["categories"], order, strict=True)}
        return {
            name: {f"{kind}_ap": _mean(self._precision(kind)[:, :, places[number], 0]) for kind in self._kinds()}
            for name, number in zip(self._names, self._category_ids, strict=True)
        }

    def _kinds(self) -> tuple[str, ...]:
        return ("box", "mask") if self._masks else ("box",)

    def _called(self, index: int) -> str:
        image = self._truth["images"][index]
        return f"image {image['id']} ({image['file_name']})"

    def _check(self, found: Detections, index: int) -> None:
        images = self._truth["images"]
        if not 0 <= index < len(images):
            raise ValueError(f"picture {index} is none of the {len(images)} of the ground truth")
        if index in self._found:
            raise ValueError(f"{self._called(index)} is scored twice")
        size = images[index]["height"], images[index]["width"]
        if tuple(found.size) != size:
            raise ValueError(f"{self._called(index)} is {size} high and wide, but its results are for {found.size}")
        if self._masks and found.masks is None:
            raise ValueError(f"{self._called(index)}: masks are to be scored, but the results have boxes only")
        if not (found.boxes.isfinite().all() and found.scores.isfinite().all()):
            raise DivergedError(f"{self._called(index)}: the model computed boxes or scores that are no finite numbers")
        if len(found.indices) and not 0 <= int(found.indices.min()) <= int(found.indices.max()) < len(self._names):
            raise ValueError(f"{self._called(index)}: class indices must lie in 0 to {len(self._names) - 1}")

    def _precision(self, kind: str) -> NDArray[np.float64]:
        """(10 overlaps, 101 recalls, categories by id, all sizes and each of three), -1 where there is no object."""
        if kind not in self._precisions:
            missing = len(self._truth["images"]) - len(self._found)
            if missing and not (self._allow_missing and self._found):
                first = next(index for index in range(len(self._truth["images"])) if index not in self._found)
                raise ValueError(f"{missing} pictures were not scored, the first is {self._called(first)}")
            self._precisions[kind] = _evaluate(self._scored_truth(), self._results(kind), kind)
            if not (self._precisions[kind] > -1).any():
                raise ValueError("the pictures hold no object to find, so there is no average precision")
        return self._precisions[kind]

    def _scored_truth(self) -> dict[str, Any]:
        """The annotations of the scored pictures, numbered from 1: as an id, 0 means no match to COCO's evaluation."""
        images = [self._truth["images"][index] for index in sorted(self._found)]
        scored = {image["id"] for image in images}
        annotations = [found for found in self._truth["annotations"] if found["image_id"] in scored]
        numbered = [{**annotation, "id": number} for number, annotation in enumerate(annotations, 1)]
        return {"images": images, "annotations": numbered, "categories": self._truth["categories"]}

    def _results(self, kind: str) -> list[dict[str, Any]]:
        """Boxes or masks, never both: beside a box, COCO's evaluation measures the size of a mask by that box."""
        results = []
        for index, found in sorted(self._found.items()):
            number = self._truth["images"][index]["id"]
            boxes, labels = found.boxes.tolist(), found.indices.tolist()
            for row, (label, score) in enumerate(zip(labels, found.scores.tolist(), strict=True)):
                result = {"image_id": number, "category_id": self._category_ids[label], "score": score}
                if kind == "mask":
                    result["segmentation"] = found.masks[row]
                else:
                    left, top, right, bottom = boxes[row]
                    result["bbox"] = [left, top, right - left, bottom - top]
                results.append(result)
        return results


def _evaluate(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> NDArray[np.float64]:
    from faster_coco_eval import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    annotations = COCO(truth)
    evaluation = COCOeval_faster(
        annotations, annotations.loadRes(results), "segm" if kind == "mask" else "bbox", print_function=_say_nothing
    )
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[..., _MOST]


def _say_nothing(*_: object) -> None: ...


def _mean(precision: NDArray[np.float64]) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None
