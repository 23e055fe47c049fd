"""`davit evaluate`: score a checkpoint on labelled images."""

import sys
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from davit.cli.evaluate_probe import Probe
from davit.cpus import usual_workers
from davit.inference.backends import BackendName

if TYPE_CHECKING:
    from torch import Tensor

    from davit.cli.builtin import DigitsOfTest
    from davit.data.images import LabelledImages
    from davit.evaluation.accuracy import Accuracy
    from davit.inference.backends.protocol import Backend

_HELP = """Score a checkpoint on labelled images: one folder for each class, or shards. Detectors are scored on COCO
annotations (average precision), segmenters on index masks (mean intersection over union), image-text models on
captions (retrieval both ways), or with --zero-shot on class folders by their names alone. --probe scores the features
under any head, or of a backbone without one, by nearest neighbours and a linear classifier.

Folders are matched with the checkpoint's classes by name, WordNet ids included, never by their order. A file that
cannot be decoded ends the evaluation: no image is left out or replaced silently.

  davit evaluate mine.safetensors --data flowers
  davit evaluate davit_tiny.msft_in1k --data imagenet/val --json
  davit evaluate detector.safetensors --data coco
  davit evaluate segmenter.safetensors --data ADEChallengeData2016
  davit evaluate runs/digits/model.safetensors --data digits
  davit evaluate image_text.safetensors --data captions
  davit evaluate image_text.safetensors --data imagenet/val --zero-shot --templates imagenet
  davit evaluate davit_base_florence2.florence2 --data flowers --probe both --size 224
  davit evaluate segmenter.safetensors --data ADEChallengeData2016 --scales 0.5,0.75,1,1.25,1.5,1.75 --flip

Those with ADEChallengeData2016 are the official tests of ADE20K: single-scale, whole pictures of 512 pixels on the
short side and at most 2048 on the long one; and multi-scale with mirror images. Where mmsegmentation's tests slide a
window, it is often --window 512 --stride 341.
"""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def evaluate(
        checkpoint: Annotated[Positional[str], arg(metavar="CHECKPOINT")],
        data: Annotated[str, arg(metavar="DIR")],
        size: Annotated[int | None, arg(metavar="PIXELS")] = None,
        crop: Annotated[float | None, arg(metavar="SHARE")] = None,
        batch_size: Annotated[int, arg(metavar="N")] = 32,
        workers: Annotated[int | None, arg(metavar="N")] = None,
        device: Annotated[str | None, arg(metavar="NAME")] = None,
        backend: BackendName = "eager",
        variant: Annotated[str | None, arg(metavar="NAME")] = None,
        trust: bool = False,
        class_list: Annotated[Path | None, arg(metavar="FILE")] = None,
        ignore: Annotated[tuple[int, ...], arg(metavar="LABEL...")] = (),
        scales: Annotated[str | None, arg(metavar="RATIO,...")] = None,
        flip: bool = False,
        window: Annotated[str | None, arg(metavar="HxW")] = None,
        stride: Annotated[str | None, arg(metavar="HxW")] = None,
        allow_missing: bool = False,
        per_class: bool = False,
        zero_shot: bool = False,
        templates: Annotated[str | None, arg(metavar="TEXT|FILE")] = None,
        probe: Probe | None = None,
        json: bool = False,
    ) -> int:
        """Evaluate.

        Args:
            checkpoint: A checkpoint, a name of `davit models`, or a file of `davit export`.
            data: A folder with a folder for each class, or shards (a URL too); for detectors COCO's layout or
                Roboflow's, for segmenters pictures beside index masks. Of train/ and val/ the latter is taken. Built in
                are the test images of `digits`, `digits.segmentation` and so on.
            size: Side of the images, instead of the checkpoint's.
            crop: Share of the resized image's side that the central crop keeps, instead of the checkpoint's.
            batch_size: Images computed at once.
            workers: Processes that decode images; the scores do not depend on it. By default one per CPU, 8 at most.
            device: cpu, cuda, cuda:1 and so on; by default the graphics card if there is one.
            backend: What computes a checkpoint: eager is PyTorch, native our engine for CPUs, auto the faster of both
                on this machine.
            variant: What CHECKPOINT is, where its tensors leave it open: a name of `davit models`.
            trust: Run the code that a file of `davit export --format torch` is.
            class_list: Names of the labels of index masks, a line each, where no classes.txt lies in DIR.
            ignore: Labels of index masks that stand for no class, beside 255.
            scales: With a segmenter, average its answers over these sizes, relative to the usual one.
            flip: With a segmenter, average over mirror images, too.
            window: With a segmenter, look at each image through a sliding window of so many pixels; for large pictures.
            stride: Pixels from one window to the next, down and across; by default two thirds of the window.
            allow_missing: Score what is there, instead of refusing classes without images and files that cannot be
                decoded; the count tells how many images that was.
            per_class: Print the score of each class as well.
            zero_shot: With an image-text model, name classes that it never learnt, by the names of the folders.
            templates: How a name becomes a caption with --zero-shot: a sentence with {} for it, a file of them, or
                simple or imagenet for open_clip's 7 and 80; by default the model's own.
            probe: Fit nearest neighbours, a linear classifier, or both to the features of train/ and score them on
                val/; where there are no such folders a fifth is held out.
            json: Print the result as JSON, with the score of each class.
        """
        from davit.cli.evaluate_image_text import evaluate_pairs, is_image_text, zero_shot_on
        from davit.cli.evaluate_opening import open_scored
        from davit.cli.evaluate_views import parse_views, refuse_options

        views = parse_views(scales, flip, window, stride)
        without = {"--crop": crop is not None, "--allow-missing": allow_missing, "--per-class": per_class}
        if probe is not None:
            from davit.cli.evaluate_probe import evaluate_probe

            refuse_options("--probe", without | {"--zero-shot": zero_shot, "--templates": templates is not None})
            return evaluate_probe(
                checkpoint, data, probe, variant=variant, size=size, batch_size=batch_size, workers=workers,
                device=device, backend=backend, json=json,
            )  # fmt: skip
        if templates is not None and not zero_shot:
            raise ValueError("--templates says how names of classes are put to an image-text model: add --zero-shot")
        if not zero_shot and is_image_text(checkpoint):
            refuse_options("retrieval among captions", without | {f"--backend {backend}": backend != "eager"})
            return evaluate_pairs(
                checkpoint, data, size=size, batch_size=batch_size, workers=workers, device=device, json=json
            )
        named = zero_shot_on(checkpoint, variant, data, templates) if zero_shot else None
        opened = open_scored(checkpoint, variant, size, crop, device, backend, trust, named)
        if opened.kind != "classification":
            from davit.cli.evaluate_dense import DenseOptions, evaluate_dense

            return evaluate_dense(
                opened,
                checkpoint,
                data,
                DenseOptions(
                    batch_size=batch_size,
                    workers=workers,
                    class_list=class_list,
                    ignore=ignore,
                    views=views,
                    allow_missing=allow_missing,
                ),
                json=json,
                per_class=per_class,
            )
        if not views.plain:
            raise ValueError("--scales, --flip and --window are for segmenters, and this is a classifier")
        images = _images(data, opened, allow_missing)
        left_out: list[str] | None = [] if allow_missing else None
        metric = score(opened, images, batch_size=batch_size, workers=workers, left_out=left_out)
        for fault in left_out or ():
            print(f"davit evaluate: left out: {fault}", file=sys.stderr)
        return _print(_report(checkpoint, images, opened, metric, left_out or []), json, per_class)

    return tyro.cli(evaluate, prog="davit evaluate", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def score(
    backend: "Backend",
    images: "LabelledImages | DigitsOfTest",
    *,
    batch_size: int = 32,
    workers: int | None = None,
    left_out: list[str] | None = None,
) -> "Accuracy":
    """Count right answers over every image.

    Args:
        backend: what to score.
        images: what to score it on.
        batch_size: images computed at once.
        workers: processes that decode.
        left_out: images that cannot be decoded are left out and named here; None ends with the first of them.
    """
    from tqdm import tqdm

    from davit.data.evaluation_loader import evaluation_batches
    from davit.data.tolerant import Tolerant
    from davit.evaluation.accuracy import Accuracy
    from davit.evaluation.evaluate import evaluate

    metric = Accuracy(backend.config.num_classes)
    workers = usual_workers() if workers is None else workers
    chosen = images if left_out is None else Tolerant(images)
    batches = evaluation_batches(chosen, backend.preprocessing, batch_size=batch_size, workers=workers)
    if isinstance(chosen, Tolerant) and left_out is not None:
        batches = chosen.without_faults(batches, left_out)
    with tqdm(total=len(images), unit="image", disable=None, leave=False) as bar:

        def counted(pixels: "Tensor") -> "Tensor":
            bar.update(len(pixels))
            return backend(pixels)

        evaluate(counted, batches, metric)
    return metric


def _images(data: str, backend: "Backend", allow_missing: bool) -> "LabelledImages | DigitsOfTest":
    from davit.cli.builtin import digits_of_test, is_builtin
    from davit.data.images import find_images

    if is_builtin(data):
        return digits_of_test(data, backend.classes, backend.config.num_classes)
    source = find_images(data)
    part = source.validation
    images = source.open(part, backend.classes, num_classes=backend.config.num_classes, allow_missing=allow_missing)
    notes = [f"taking {part} of {data}" if source.sharded else f"taking {images.root}"] if part == "val" else []
    notes += [images.note] if images.note else []
    notes += [f"{len(images.missing)} of {len(images.classes)} classes have no images"] if images.missing else []
    if images.skipped and source.sharded:
        notes.append(f"{images.skipped} samples were left out when the shards were indexed")
    elif images.skipped:
        notes.append(f"passed over {images.skipped} files that are no images")
    for note in notes:
        print(f"davit evaluate: {note}", file=sys.stderr)
    return images


def _report(
    checkpoint: str,
    images: "LabelledImages | DigitsOfTest",
    backend: "Backend",
    metric: "Accuracy",
    left_out: list[str],
) -> dict[str, Any]:
    from davit.records import to_json

    return {
        **metric.compute(),
        "per_class": metric.per_class(images.classes),
        "missing": list(images.missing),
        "left_out": left_out,
        "checkpoint": checkpoint,
        "data": str(images.root),
        "preprocessing": to_json(backend.preprocessing),
    }


def _print(report: dict[str, Any], json: bool, per_class: bool) -> int:
    print(dumps(report, indent=2) if json else _table(report, per_class))
    return 0


def _table(report: dict[str, Any], per_class: bool) -> str:
    height, width = report["preprocessing"]["size"]
    present = {name: entry for name, entry in report["per_class"].items() if entry["count"]}
    lines = [
        f"{report['checkpoint']} on {report['data']}, {width}x{height} pixels",
        "",
        f"  top-1   {100 * report['top1']:6.2f} %",
        f"  top-5   {100 * report['top5']:6.2f} %",
        f"  images  {report['count']:6d}, {len(present)} classes",
    ]
    if per_class:
        wide = max(len("class"), *(len(name) for name in present))
        lines += ["", f"  {'class':<{wide}}   images    top-1"]
        lines += [
            f"  {name:<{wide}}  {entry['count']:7d}  {100 * entry['top1']:6.2f} %" for name, entry in present.items()
        ]
    return "\n".join(lines)
