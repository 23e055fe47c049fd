"""Image classification: cross-entropy with label smoothing, mixup and cutmix (the DaViT recipe, official train.py)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from davit.evaluation.accuracy import Accuracy
from davit.evaluation.evaluate import Exchange
from davit.structures import Batch
from davit.tasks.mixing import Blend, draw_blend, mix_images, mix_targets

CONFUSION_CLASSES = 1000  # a matrix of a million counts; larger ones nobody looks at


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """How the loss is made.

    Attributes:
        label_smoothing: share of the target spread over all classes.
        mixup: alpha of the Beta distribution that blends two images; 0 for none.
        cutmix: alpha of the Beta distribution that sizes a pasted rectangle; 0 for none.
        mix_probability: how often a batch is mixed at all.
        mix_switch: how often cutmix is taken where both are on.
    """

    label_smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    mix_probability: float = 1.0
    mix_switch: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what is no probability or no alpha."""
        for name in ("mix_probability", "mix_switch"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if self.mixup < 0 or self.cutmix < 0:
            raise ValueError(f"mixup and cutmix must not be negative, got {self.mixup} and {self.cutmix}")


class ClassificationTask:
    """The loss of a classifier over a batch of images and class indices.

    Attributes:
        score: key of the metric that chooses the best model.
    """

    score = "top1"

    def __init__(self, config: ClassificationConfig, num_classes: int) -> None:
        """Build for a head of `num_classes`."""
        self.config = config
        self.num_classes = num_classes

    def losses(self, model: Callable[..., Tensor], batch: Batch) -> dict[str, Tensor]:
        """Mix the batch and return the loss; mixing draws from NumPy's global generator."""
        config, images, targets = self.config, batch.images, batch.targets
        blend = self._blend(images)
        if blend is None:
            logits = model(images).float()
            return {"loss": F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)}
        soft = mix_targets(targets, self.num_classes, config.label_smoothing, blend)
        return {"loss": F.cross_entropy(model(mix_images(images, blend)).float(), soft)}

    def _blend(self, images: Tensor) -> Blend | None:
        config = self.config
        if config.mix_probability == 0 or config.mixup == config.cutmix == 0:
            return None
        return draw_blend(
            *images.shape[-2:],
            mixup=config.mixup,
            cutmix=config.cutmix,
            probability=config.mix_probability,
            switch=config.mix_switch,
        )

    def metric(self) -> "ClassificationMetric":
        """Return a fresh metric."""
        return ClassificationMetric(self.num_classes)


class ClassificationMetric:
    """Accuracy, and the mean cross-entropy without smoothing as `validation_loss`."""

    def __init__(self, num_classes: int) -> None:
        """Begin at zero."""
        self.accuracy = Accuracy(num_classes, confusion=num_classes <= CONFUSION_CLASSES)
        self.entropy = torch.zeros((), dtype=torch.float64)

    def update(self, logits: Tensor, targets: Tensor) -> None:  # (B, classes), (B,)
        """Count a batch."""
        self.accuracy.update(logits, targets)
        self.entropy += F.cross_entropy(logits.double(), targets.to(logits.device), reduction="sum").cpu()

    def merge(self, exchange: Exchange) -> None:
        """Add up the counts of all processes."""
        for counter in (*self.accuracy.counters(), self.entropy):
            exchange.sum(counter)

    def compute(self) -> dict[str, float]:
        """Return `top1`, `top5`, `count` and `validation_loss`."""
        scores = self.accuracy.compute()
        return scores | {"validation_loss": float(self.entropy) / scores["count"]}
