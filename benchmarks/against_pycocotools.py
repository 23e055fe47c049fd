"""Our average precision beside pycocotools', on what a trained detector really finds.

    python benchmarks/against_pycocotools.py CHECKPOINT COCO_DIR [--out FILE]

Scores a detector as `davit evaluate` does, hands the same objects to pycocotools as COCO results, and writes both and
the largest difference as JSON. A difference over 1e-9 ends with code 1.
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from davit.cli.evaluate_dense import DenseOptions, open_dense, score_dense
from davit.evaluation.coco import CocoMetric
from davit.evaluation.views import Views
from davit.inference.backends.opening import open_backend
from davit.structures import Detections, Picture
from record import write_record

MOST_DIFFERENCE = 1e-9
PARTS = ("", "50", "75", "_small", "_medium", "_large")


class KeepingMetric(CocoMetric):
    """Counts, and keeps what it was told, in COCO's format."""

    def keep(self, image_ids: Sequence[int], category_ids: tuple[int, ...]) -> None:
        """Begin to keep, with the ids of pictures and classes."""
        self.kept: list[dict[str, Any]] = []
        self.image_ids, self.ids = image_ids, category_ids

    def update(self, results: Sequence[Detections], targets: Sequence[Picture]) -> None:
        """Keep and count."""
        for found, picture in zip(results, targets, strict=True):
            self.kept += found.to_coco(self.image_ids[picture.index], self.ids)
        super().update(results, targets)


def by_pycocotools(truth: dict[str, Any], kept: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """The same numbers; masks without their boxes, so that sizes are those of the masks."""
    other = "bbox" if kind == "mask" else "segmentation"
    results = [{key: value for key, value in found.items() if key != other} for found in kept]
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO()
        annotations.dataset = truth
        annotations.createIndex()
        evaluation = COCOeval(annotations, annotations.loadRes(results), "segm" if kind == "mask" else "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {f"{kind}_ap{part}": float(value) for part, value in zip(PARTS, evaluation.stats[:6], strict=True)}


def main() -> int:
    """Score, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("root", help="a folder in COCO's layout; its val2017 is scored")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    how = DenseOptions(batch_size=1, workers=0, class_list=None, ignore=(), views=Views())
    backend = open_backend(options.checkpoint)
    images, metric = open_dense(backend, options.root, how)
    truth, ids = images.ground_truth(), tuple(images.category_ids)
    masks = backend.config.head.kind == "mask_rcnn"
    keeping = KeepingMetric(truth, ids, masks)
    keeping.keep([image["id"] for image in truth["images"]], ids)
    metric.coco = keeping
    ours = score_dense(backend, images, list(range(len(images))), metric, how)
    theirs: dict[str, float] = {}
    for kind in ("box", "mask") if masks else ("box",):
        theirs |= by_pycocotools(truth, keeping.kept, kind)
    difference = max(abs(ours.get(name, -1.0) - value) for name, value in theirs.items())
    crowds = sum(found["iscrowd"] for found in truth["annotations"])
    counts = {"pictures": len(images), "objects": len(truth["annotations"]), "crowds": crowds}
    report = {**counts, "found": len(keeping.kept), "davit": ours, "pycocotools": theirs, "difference": difference}
    write_record(report, options.out, show=True)
    if difference > MOST_DIFFERENCE:
        print(f"the average precisions differ by {difference:.2g}", file=sys.stderr)
    return int(difference > MOST_DIFFERENCE)


if __name__ == "__main__":
    sys.exit(main())
