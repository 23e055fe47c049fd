"""Image classification: pool, norm, linear, in this order (norm before pool costs 0.5 points of ImageNet top-1)."""

from torch import Tensor, nn

from davit.models.blocks import NORM_EPS
from davit.models.config import ClassifierConfig
from davit.models.davit import DaViT, init_linear
from davit.preprocessing import Preprocessing


class Classifier(nn.Module):
    """A backbone under a linear classifier.

    Attributes:
        config: the architecture.
        preprocessing: what images go through before the model.
        classes: a name for each logit, where known.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        """Build with fresh weights."""
        super().__init__()
        width = config.backbone.widths[-1]
        self.config = config
        self.backbone = DaViT(config.backbone)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, config.num_classes)
        init_linear(self.head)
        self.preprocessing: Preprocessing | None = None
        self.classes: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> Tensor:  # (B, in_channels, height, width)
        """Return logits, (B, num_classes)."""
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled and normed features under the head, (B, C)."""
        return self.norm(self.backbone(images)[-1].mean((2, 3)))
