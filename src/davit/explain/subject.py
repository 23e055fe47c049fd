"""Weights opened to be explained: a model whose tensors can be looked into, and what of its answers is asked about."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from davit.decoding import read_image
from davit.explain.attention import backbone_of
from davit.explain.targets import Target, find_targets, likeness
from davit.inference.backends.eager import choose_device
from davit.inference.backends.opening import exported_format
from davit.inference.embedding import embed_with
from davit.inference.results import Prepared, Result, read_outputs
from davit.inference.zero_shot import Labels, zero_shot
from davit.models.classifier import Classifier
from davit.models.clip import ImageTextModel
from davit.models.config import DaViTConfig
from davit.models.detector import Detector
from davit.models.upernet import Segmenter
from davit.models.zero_shot import Embedder, ZeroShotClassifier
from davit.naming import unknown_name
from davit.preprocessing import Preprocessing
from davit.weights.load import load

TOP = 5  # classes of an answer


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a model, besides its surest answers.

    Attributes:
        labels: what an image-text model is to look for, which makes a classifier of it.
        texts: texts that pictures are compared with, by an image-text model.
        pictures: files that pictures are compared with.
    """

    labels: Labels | None = None
    texts: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to be explained.

    Attributes:
        model: answers, or for likenesses gives vectors; in eval mode.
        preprocessing: what pictures go through before it.
        classes: names of its classes; empty where unknown or none.
        likenesses: names and vectors that pictures are compared with; where there are any, they are what is explained.
    """

    model: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    likenesses: tuple[tuple[str, Tensor], ...] = ()

    @property
    def backbone(self) -> DaViTConfig:
        """The architecture that is looked into."""
        return backbone_of(self.model).config

    def class_index(self, name: str) -> int:
        """The class of that name, or of that index where a number is given and no class is called so.

        Raises:
            ValueError: no class of that name; the nearest are given.
        """
        if name in self.classes:
            return self.classes.index(name)
        if name.isdecimal():
            return int(name)  # `find_targets` knows how many there are
        if not isinstance(self.model, Classifier | Detector | Segmenter | ZeroShotClassifier):
            raise ValueError(f"this model names no classes, so there is no {name!r}: compare with --text or --like")
        if not self.classes:
            raise ValueError(f"this model does not know the names of its classes: give the index in place of {name!r}")
        raise unknown_name("class", name, self.classes)

    def targets(self, pixels: Tensor, class_index: int | None, count: int) -> list[Target]:
        """What is explained of an image; see `find_targets`."""
        if not self.likenesses:
            return find_targets(self.model, pixels, class_index=class_index, count=count)
        assert isinstance(self.model, Embedder)
        return [likeness(self.model, pixels, vector, name) for name, vector in self.likenesses]

    def answer(self, prepared: Prepared) -> Result | None:
        """The model's answer; None for one that gives vectors."""
        kind = "detection" if isinstance(self.model, Detector) else "classification"
        kind = "segmentation" if isinstance(self.model, Segmenter) else kind
        if not isinstance(self.model, Classifier | Detector | Segmenter | ZeroShotClassifier):
            return None
        with torch.inference_mode():
            outputs = self.model(prepared.pixels[None].to(next(self.model.parameters())))
        outputs = outputs.logits if kind == "segmentation" else outputs
        outputs = outputs.cpu() if isinstance(outputs, Tensor) else outputs
        return read_outputs(kind, outputs, [prepared], self.classes, TOP)[0]


def open_subject(
    source: str | Path,
    asked: Asked | None = None,
    *,
    variant: str | None = None,
    size: int | None = None,
    device: str | torch.device | None = None,
) -> Subject:
    """Open weights to be explained.

    Args:
        source: what `davit.load` takes; backbones without a head, too.
        asked: what to explain.
        variant: the architecture, for weights that leave it open.
        size: side of the images, for weights that do not say how images are prepared.
        device: where to compute; None takes the graphics card if there is one.

    Raises:
        ValueError: unknown or unusable weights, a file of `davit export`, questions that the model cannot answer, or
            weights that do not say how images are prepared and no size.
        OSError: a file cannot be read.
    """
    asked = asked or Asked()
    if exported_format(source):
        raise ValueError(
            f"{source} is a file of davit export: its engine gives answers and keeps the tensors inside. Explain the "
            "checkpoint that it was made from"
        )
    model = load(source, variant=variant)
    backbone = backbone_of(model)
    if model.preprocessing is None and size is None:
        raise ValueError(f"{source} does not say how images are prepared for it: give their side with --size")
    preprocessing = model.preprocessing or Preprocessing.imagenet(size or 0, backbone.config.in_channels)
    model.preprocessing = preprocessing
    model.to(choose_device(device)).eval()
    if asked.labels is not None:
        if not isinstance(model, ImageTextModel):
            raise ValueError(f"labels are for image-text models, which know texts; {source} is none: leave them out")
        model = zero_shot(model, asked.labels).eval()
        return Subject(model=model, preprocessing=preprocessing, classes=model.classes)
    if asked.texts or asked.pictures:
        texts = zip(asked.texts, embed_with(model, asked.texts, source, device), strict=True) if asked.texts else ()
        embedder = Embedder(model).eval()
        pictures = [(Path(path).name, _vector(embedder, path, preprocessing)) for path in asked.pictures]
        return Subject(model=embedder, preprocessing=preprocessing, classes=(), likenesses=(*texts, *pictures))
    return Subject(model=model, preprocessing=preprocessing, classes=tuple(getattr(model, "classes", ())))


def _vector(embedder: Embedder, path: str, preprocessing: Preprocessing) -> Tensor:
    pixels = preprocessing(read_image(path))
    with torch.no_grad():
        return embedder(pixels[None].to(next(embedder.parameters())))[0]


def places_of(texts: Sequence[str], depths: Sequence[int]) -> list[tuple[int, int]]:
    """Places of blocks as a command line has them, counted from 1: `3` is a stage with all its blocks, `3.2` one block.

    Raises:
        ValueError: no such text; whether the block is there `places` says.
    """
    found: list[tuple[int, int]] = []
    for text in texts:
        stage, _, block = text.partition(".")
        if not stage.isdecimal() or not (block.isdecimal() or text == stage):
            raise ValueError(f"--blocks takes all, last, or places such as 3 or 3.2 (stage.block), got {text!r}")
        index = int(stage) - 1
        blocks = [int(block) - 1] if block else range(depths[index] if 0 <= index < len(depths) else 1)
        found += [(index, each) for each in blocks]
    return found
