"""What is made of trained models without training: a classifier from texts, and vectors from any model."""

import torch.nn.functional as F
from torch import Tensor, nn

from davit.models.classifier import Classifier
from davit.models.clip import ImageTextModel
from davit.models.config import ClassifierConfig, EmbedderConfig
from davit.models.davit import DaViT
from davit.preprocessing import Preprocessing


class ZeroShotClassifier(nn.Module):
    """An image tower under a matrix of texts (CLIP, section 3.1): logits are similarities over the temperature.

    Attributes:
        config: the backbone, and as many classes as there are texts.
        preprocessing: that of the image-text model.
        classes: what the texts stand for.
    """

    def __init__(self, model: ImageTextModel, texts: Tensor, classes: tuple[str, ...]) -> None:
        """Share the towers of a model.

        Args:
            model: trained; it is put into evaluation mode.
            texts: a vector of length 1 for each class, (classes, embedding).
            classes: their names.

        Raises:
            ValueError: the texts do not fit the classes or the model.
        """
        super().__init__()
        if texts.shape != (len(classes), model.config.head.embedding):
            wanted = (len(classes), model.config.head.embedding)
            raise ValueError(f"expected a text vector for each class, {wanted}, got {tuple(texts.shape)}")
        model.eval()
        self.config = ClassifierConfig(backbone=model.config.backbone, num_classes=len(classes))
        self.backbone, self.norm, self.projection = model.backbone, model.norm, model.projection
        self.register_buffer("texts", (model.scale() * texts).detach())
        self.preprocessing: Preprocessing | None = model.preprocessing
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:  # (B, in_channels, height, width)
        """Return logits, (B, classes)."""
        vectors = self.projection(self.norm(self.backbone(images)[-1].mean((2, 3))))
        return F.normalize(vectors, dim=-1) @ self.texts.T


class Embedder(nn.Module):
    """A vector for each image, by the part of a model under its head.

    Of an image-text model it is the vector that images share with texts; of a classifier the pooled and normed
    features under the linear layer; of any other model the mean of the backbone's last map.

    Attributes:
        config: the backbone and the length of a vector.
        preprocessing: that of the model.
        classes: none.
    """

    def __init__(self, model: nn.Module) -> None:
        """Share the weights of a model.

        Raises:
            ValueError: a model without a backbone.
        """
        super().__init__()
        backbone = model if isinstance(model, DaViT) else getattr(model, "backbone", None)
        if not isinstance(backbone, DaViT):
            raise ValueError(f"{type(model).__name__} has no backbone to take features of")
        width = backbone.config.widths[-1]
        embedding = model.config.head.embedding if isinstance(model, ImageTextModel) else width
        self.config = EmbedderConfig(backbone=backbone.config, embedding=embedding)
        self.backbone = backbone
        norm = model.norm if isinstance(model, Classifier | ImageTextModel) else nn.Identity()
        projection = model.projection if isinstance(model, ImageTextModel) else nn.Identity()
        self.norm, self.projection = norm, projection
        preprocessing = getattr(model, "preprocessing", None)
        self.preprocessing: Preprocessing | None = preprocessing if isinstance(preprocessing, Preprocessing) else None
        self.classes: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> Tensor:  # (B, in_channels, height, width)
        """Return vectors as the model has them, not of length 1, (B, embedding)."""
        return self.projection(self.norm(self.backbone(images)[-1].mean((2, 3))))
