"""Values that cross folders."""

from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Any

from davit.colours import class_colour
from davit.structures.html import show_classification, show_detections, show_embedding, show_segmentation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Instances:
    """The annotated objects of one image.

    Attributes:
        boxes: (N, 4) float32: left, top, right, bottom in pixels of the image beside them.
        labels: (N,) int64, class indices.
        masks: (N, height, width) bool, or None where only boxes are known.
    """

    boxes: "Tensor"
    labels: "Tensor"
    masks: "Tensor | None" = None

    def map(self, change: "Callable[[Tensor], Tensor]") -> "Instances":
        """Apply a change of place to every tensor."""
        return Instances(
            boxes=change(self.boxes),
            labels=change(self.labels),
            masks=None if self.masks is None else change(self.masks),
        )


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The picture behind an evaluated image, whose results are wanted in its own pixels.

    Attributes:
        index: its place in the data set.
        size: its height and width before any resize.
        resized: its height and width as the model is given it; None for the same.
        classes: (height, width) uint8 class indices of its pixels, 255 where none counts; for segmentation.
    """

    index: int
    size: tuple[int, int]
    resized: tuple[int, int] | None = None
    classes: "Tensor | None" = None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What belongs to an image of an image-text data set.

    Attributes:
        tokens: its caption, (T,) int64.
        label: a number that pairs of one meaning share.
        image: number of the image, which may have several captions.
    """

    tokens: "Tensor"
    label: int
    image: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a dataset hands to a task.

    Attributes:
        images: (B, C, H, W), normalised; smaller ones among larger ones have zeros at the right and bottom.
        targets: what the task learns or is scored by. Classification: class indices, (B,) int64. Segmentation: class
            indices of pixels, (B, H, W) int64, 255 where none counts. Detection: the instances of each image.
            Evaluation of detection and segmentation: the picture behind each image. Image-text: label and
            number of each image, (B, 2) int64.
        texts: the caption of each image as tokens, (B, T) int64; for image-text alone.
        ids: index of each sample in its dataset.
        faults: files that could not be read and were replaced by another sample, with the reason.
        sizes: height and width of each image inside `images`; empty where all fill it.
    """

    images: "Tensor"
    targets: Any
    ids: tuple[int, ...] = ()
    faults: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    texts: "Tensor | None" = None

    def to(self, device: Any) -> "Batch":
        """Copy to a device, without waiting for it where the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Copy into page-locked memory; the loader calls it."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: "Callable[[Tensor], Tensor]") -> "Batch":
        targets = self.targets
        if not isinstance(targets, tuple):
            targets = change(targets)
        else:  # pictures stay where they are: what they hold is compared on the CPU
            targets = tuple(target.map(change) if isinstance(target, Instances) else target for target in targets)
        texts = None if self.texts is None else change(self.texts)
        return replace(self, images=change(self.images), targets=targets, texts=texts)


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The most likely classes of one image, best first.

    Attributes:
        labels: class names, or class indices as text where the model has no names.
        indices: their indices among the logits.
        scores: their softmax probabilities.
        source: where the image came from, if it came from a file.
    """

    labels: tuple[str, ...]
    indices: tuple[int, ...]
    scores: tuple[float, ...]
    source: str | None = field(default=None)

    _repr_html_ = show_classification

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        top = zip(self.labels, self.indices, self.scores, strict=True)
        return {
            "file": self.source,
            "top": [{"label": label, "index": index, "score": round(score, 6)} for label, index, score in top],
        }


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The objects found in one picture, best first.

    Attributes:
        boxes: (N, 4) float32: left, top, right, bottom in pixels of the picture.
        scores: (N,) float32 in [0, 1].
        indices: (N,) int64, class indices.
        labels: name of each object's class, or its index as text where the model has no names.
        size: height and width of the picture.
        masks: (N, height, width) bool, or None where the model finds boxes only.
        source: where the picture came from, if it came from a file.
    """

    boxes: "Tensor"
    scores: "Tensor"
    indices: "Tensor"
    labels: tuple[str, ...]
    size: tuple[int, int]
    masks: "Tensor | None" = None
    source: str | None = None

    _repr_html_ = show_detections

    def above(self, threshold: float) -> "Detections":
        """Only the objects that score at least `threshold`."""
        kept = self.scores >= threshold
        return replace(
            self,
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            indices=self.indices[kept],
            labels=tuple(label for label, keep in zip(self.labels, kept.tolist(), strict=True) if keep),
            masks=None if self.masks is None else self.masks[kept],
        )

    def to_coco(self, image_id: int, category_ids: "tuple[int, ...] | None" = None) -> list[dict[str, Any]]:
        """Return the results in COCO's format: boxes as left, top, width, height; masks as compressed RLE.

        Args:
            image_id: id of the picture in its annotations.
            category_ids: id of each class in its annotations; by default the class indices.
        """
        edges = self.boxes.tolist()
        results: list[dict[str, Any]] = [
            {
                "image_id": image_id,
                "category_id": category_ids[index] if category_ids else index,
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
            }
            for (left, top, right, bottom), index, score in zip(
                edges, self.indices.tolist(), self.scores.tolist(), strict=True
            )
        ]
        for result, mask in zip(results, self.masks if self.masks is not None else (), strict=False):
            result["segmentation"] = encode_mask(mask)
        return results

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; masks as compressed RLE, as COCO's tools read them."""
        objects = [
            {"label": label, "index": found["category_id"], "score": round(found["score"], 6)}
            | {"box": [round(edge, 2) for edge in box]}
            | ({"mask": found["segmentation"]} if "segmentation" in found else {})
            for label, found, box in zip(self.labels, self.to_coco(0), self.boxes.tolist(), strict=True)
        ]
        return {"file": self.source, "height": self.size[0], "width": self.size[1], "objects": objects}

    def to_supervision(self) -> Any:
        """Return `supervision.Detections`, class names under `data["class_name"]`.

        Raises:
            ImportError: the package supervision is not installed.
        """
        import numpy as np

        try:
            import supervision
        except ImportError as error:
            raise ImportError("to_supervision needs the package supervision: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            mask=None if self.masks is None else self.masks.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.indices.numpy(),
            data={"class_name": np.array(self.labels, dtype=str)},
        )


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The class of each pixel of one picture.

    Attributes:
        classes: (height, width) uint8, class indices.
        names: name of each class, or its index as text where the model has no names.
        source: where the picture came from, if it came from a file.
    """

    classes: "Tensor"
    names: tuple[str, ...]
    source: str | None = None

    _repr_html_ = show_segmentation

    def shares(self) -> dict[str, float]:
        """Share of the picture that each class found in it covers, largest first."""
        counts = self.classes.flatten().bincount(minlength=len(self.names)).double() / self.classes.numel()
        found = sorted(zip(counts.tolist(), self.names, strict=False), reverse=True)  # 255 stands for no class
        return {name: share for share, name in found if share}

    def to_png(self, path: "str | Path | IO[bytes]") -> None:
        """Write the class indices as an 8-bit PNG with a palette, to a file or a stream: index 0 is class 0.

        Raises:
            OSError: the file cannot be written.
        """
        from PIL import Image

        image = Image.fromarray(self.classes.numpy()).convert("L")
        image.putpalette([part for index in range(256) for part in class_colour(index)])
        image.save(path, "PNG")

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: the share of each class found."""
        height, width = self.classes.shape
        shares = {name: round(share, 6) for name, share in self.shares().items()}
        return {"file": self.source, "height": height, "width": width, "classes": shares}


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """What one picture is like, as a vector.

    Attributes:
        vector: (embedding,) float32, of length 1.
        source: where the picture came from, if it came from a file.
    """

    vector: "Tensor"
    source: str | None = None

    _repr_html_ = show_embedding

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; each number is exactly the float32 it was."""
        return {"file": self.source, "embedding": self.vector.tolist()}


def encode_mask(mask: "Tensor") -> dict[str, Any]:
    """A mask (height, width) as COCO's compressed RLE, `counts` as text."""
    import numpy as np
    from faster_coco_eval.core.mask import encode

    encoded = encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    counts = encoded["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in encoded["size"]], "counts": text}
