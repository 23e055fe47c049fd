"""Images and texts in one space: a DaViT and a text transformer, each pooled and projected (paper section 4.1)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davit.models.blocks import NORM_EPS
from davit.models.clip_config import ImageTextConfig
from davit.models.davit import DaViT
from davit.models.text import NormalLinear, TextTower
from davit.preprocessing import Preprocessing

FIRST_SCALE = math.log(1 / 0.07)  # CLIP, section 2.5
LARGEST_SCALE = math.log(100)


class ImageTextOutput(NamedTuple):
    """Vectors of length 1.

    Attributes:
        images: (B, embedding).
        texts: (B, embedding), or None where only images were given.
        scale: what their products are multiplied by before a softmax: the inverse of the temperature.
    """

    images: Tensor
    texts: Tensor | None
    scale: Tensor


class ImageTextModel(nn.Module):
    """An image tower and a text tower.

    Attributes:
        config: the architecture.
        preprocessing: what images go through before the model.
        classes: always empty: what it can name, texts say.
    """

    def __init__(self, config: ImageTextConfig) -> None:
        """Build with fresh weights."""
        super().__init__()
        width, embedding = config.backbone.widths[-1], config.head.embedding
        self.config = config
        self.backbone = DaViT(config.backbone)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.projection = NormalLinear(width, embedding, std=width**-0.5, bias=False)
        self.text = TextTower(config.head.text, embedding)
        self.scale = LogitScale()
        self.preprocessing: Preprocessing | None = None
        self.classes: tuple[str, ...] = ()

    def forward(self, images: Tensor, tokens: Tensor | None = None) -> ImageTextOutput:
        """Embed a batch of images (B, in_channels, height, width) and, where given, of texts (B, T)."""
        texts = None if tokens is None else self.embed_texts(tokens)
        return ImageTextOutput(self.embed_images(images), texts, self.scale())

    def embed_images(self, images: Tensor) -> Tensor:  # (B, in_channels, height, width)
        """Return (B, embedding), each of length 1."""
        return F.normalize(self.projection(self.norm(self.backbone(images)[-1].mean((2, 3)))), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:  # (B, T)
        """Return (B, embedding), each of length 1."""
        return F.normalize(self.text(tokens), dim=-1)


class LogitScale(nn.Module):
    """The learnt inverse temperature, as its logarithm, kept between 1 and 100."""

    def __init__(self) -> None:
        """Begin at 1 / 0.07."""
        super().__init__()
        self.logarithm = nn.Parameter(torch.empty(1))  # an axis, for sharded parameters need one
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the first value."""
        nn.init.constant_(self.logarithm, FIRST_SCALE)

    def forward(self) -> Tensor:
        """Return the scale, ().

        While training, a step beyond the limits is taken back first: a clamp in the graph would stop the gradient, and
        the scale could not return.
        """
        if not self.training:
            return self.logarithm.clamp(0, LARGEST_SCALE).exp().squeeze(0)
        with torch.no_grad():
            self.logarithm.clamp_(0, LARGEST_SCALE)
        return self.logarithm.exp().squeeze(0)
