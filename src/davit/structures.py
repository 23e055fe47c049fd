"""Values that cross folders."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a dataset hands to a task.

    Attributes:
        images: (B, C, H, W), normalised.
        targets: what the task learns; for classification class indices, (B,) int64.
        ids: index of each sample in its dataset.
        faults: files that could not be read and were replaced by another sample, with the reason.
    """

    images: "Tensor"
    targets: "Tensor"
    ids: tuple[int, ...] = ()
    faults: tuple[str, ...] = ()

    def to(self, device: Any) -> "Batch":
        """Copy to a device, without waiting for it where the memory is pinned."""
        return Batch(
            images=self.images.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            ids=self.ids,
            faults=self.faults,
        )

    def pin_memory(self) -> "Batch":
        """Copy into page-locked memory; the loader calls it."""
        return Batch(
            images=self.images.pin_memory(), targets=self.targets.pin_memory(), ids=self.ids, faults=self.faults
        )


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

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        top = zip(self.labels, self.indices, self.scores, strict=True)
        return {
            "file": self.source,
            "top": [{"label": label, "index": index, "score": round(score, 6)} for label, index, score in top],
        }
