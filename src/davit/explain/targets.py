"""The number in a model's answer that is to be explained: of a class, an object, an area, or a likeness."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davit.models.clip import ImageTextModel
from davit.models.config import STRIDES
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.models.detect_regions import region_levels
from davit.models.detections import DetectorOutput
from davit.models.detector import Detector
from davit.models.upernet import Segmenter
from davit.models.zero_shot import Embedder

LEAST_SIDE = 4  # positions of a map that shows a place
SAME_OBJECT = 0.5  # IoU from which an object found in a changed picture is the one that was there


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is explained.

    Attributes:
        measure: images (B, C, height, width) to the number for each, (B,), differentiable.
        label: what it is called.
        score: what the answer says of it: a probability, an object's score, a share of the pixels, or a cosine.
        index: of the class; None for a likeness.
        stage: of the map that suits it: the last one that is still a map (`last_map`), for an object the one whose
            stride suits its size.
        box: left, top, right and bottom of an object in pixels of the image given; None for anything else.
    """

    measure: Callable[[Tensor], Tensor]
    label: str
    score: float
    index: int | None = None
    stage: int = 3
    box: tuple[float, ...] | None = None


def find_targets(model: nn.Module, pixels: Tensor, *, class_index: int | None = None, count: int = 1) -> list[Target]:
    """What a model's answer for an image rests on most.

    Args:
        model: in eval mode; of a backbone, and of an image-text model without texts, there is nothing to explain.
        pixels: (C, height, width), normalised.
        class_index: the class to explain: its logit, its objects or its area; by default the surest.
        count: how many, best first, at most; of one class only a detector may have several.

    Raises:
        ValueError: a class that the model does not have, or no object or pixel of it in this image.
    """
    if isinstance(model, DaViT | DenseBackbone | Embedder | ImageTextModel):
        return []
    classes: tuple[str, ...] = tuple(getattr(model, "classes", ()))
    known: int = model.config.num_classes  # type: ignore[bad-assignment]  # of every model with a head
    if class_index is not None and not 0 <= class_index < known:
        raise ValueError(f"the model has classes 0 to {known - 1}, and no class {class_index}")
    image = pixels[None].to(next(model.parameters()))
    with torch.no_grad():
        outputs = model(image)
    names = _Names(classes)
    if isinstance(model, Detector):
        return _objects(model, outputs[0], names, class_index, count)
    if isinstance(model, Segmenter):
        return _areas(model, outputs.logits[0], names, class_index, count, last_map(pixels))
    scores = outputs[0].float().softmax(-1)
    best = scores.topk(min(count, len(scores))).indices.tolist() if class_index is None else [class_index]
    return [
        Target(
            measure=partial(_logit, model, i), index=i, label=names[i], score=float(scores[i]), stage=last_map(pixels)
        )
        for i in best
    ]


def likeness(embedder: Embedder, pixels: Tensor, vector: Tensor, label: str) -> Target:
    """The cosine between an image (C, height, width) and a vector, of a text or another picture; in eval mode."""
    measure = partial(_cosine, embedder, F.normalize(vector.detach().float(), dim=-1))
    with torch.no_grad():
        score = float(measure(pixels[None].to(next(embedder.parameters()))))
    return Target(measure=measure, label=label, score=score, stage=last_map(pixels))


def last_map(pixels: Tensor) -> int:
    """The stage of the last map with at least 4 x 4 positions: from a smaller one no place can be read."""
    short = min(pixels.shape[-2:])
    return max((stage for stage, stride in enumerate(STRIDES) if -(-short // stride) >= LEAST_SIDE), default=0)


def _logit(model: nn.Module, index: int, images: Tensor) -> Tensor:
    """The logit of a class, before the softmax, as in section 3 of the Grad-CAM paper."""
    return model(images)[:, index]


def _object_score(model: Detector, index: int, box: tuple[float, ...], images: Tensor) -> Tensor:
    """The score of the object of this class that lies where this one does; 0 where none does.

    Gradients take the regions that Mask R-CNN proposes as given, as in training.
    """
    from torchvision.ops import box_iou  # imports as much as torch itself; classifiers do without

    scores: list[Tensor] = []
    for output in model(images):
        own = (output.indices == index).nonzero().squeeze(1)
        if not len(own):
            scores.append(output.scores.new_zeros(()))
            continue
        overlap = box_iou(output.boxes[own].detach(), output.boxes.new_tensor([box]))[:, 0]
        best = overlap.argmax()
        scores.append(output.scores[own[best]] * (overlap[best] >= SAME_OBJECT))
    return torch.stack(scores)


def _area_logits(model: Segmenter, index: int, area: Tensor, images: Tensor) -> Tensor:
    """The sum of a class's logits over the pixels given to it (Vinogradova et al. 2020, arXiv 2002.11434)."""
    logits = model(images).logits[:, index]
    return (logits * area.to(logits)).sum((1, 2))


def _cosine(embedder: Embedder, vector: Tensor, images: Tensor) -> Tensor:
    vectors = F.normalize(embedder(images).float(), dim=-1)
    return vectors @ vector.to(vectors)


class _Names:
    """Names of classes, or their indices as text where the model has none."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes

    def __getitem__(self, index: int) -> str:
        return self.classes[index] if index < len(self.classes) else str(index)


def _objects(
    model: Detector, output: DetectorOutput, names: _Names, class_index: int | None, count: int
) -> list[Target]:
    """The surest objects. Their map is the one whose stride suits their size (FPN, equation 1)."""
    rows = range(len(output.scores))
    wanted = [row for row in rows if class_index is None or int(output.indices[row]) == class_index]
    if class_index is not None and not wanted:
        others = sorted({names[index] for index in output.indices.tolist()})
        raise ValueError(f"no {names[class_index]} was found in this image, only {', '.join(others) or 'nothing'}")
    stages = region_levels(output.boxes, 4).clamp_min(model.config.head.first_stage).tolist()
    found: list[Target] = []
    for row in wanted[:count]:
        index, box = int(output.indices[row]), tuple(output.boxes[row].tolist())
        found.append(
            Target(
                measure=partial(_object_score, model, index, box),
                index=index,
                label=names[index],
                score=float(output.scores[row]),
                stage=int(stages[row]),
                box=box,
            )
        )
    return found


def _areas(
    model: Segmenter, logits: Tensor, names: _Names, class_index: int | None, count: int, stage: int
) -> list[Target]:
    """The classes that cover most."""
    chosen = logits.argmax(0)
    shares = chosen.flatten().bincount(minlength=len(logits)).double() / chosen.numel()
    if class_index is not None and not shares[class_index]:
        found = ", ".join(names[index] for index in shares.nonzero().flatten().tolist())
        raise ValueError(f"no pixel of this image was given to {names[class_index]}, only to {found}")
    order = shares.argsort(descending=True)[: int((shares > 0).sum())][:count].tolist()
    wanted = order if class_index is None else [class_index]
    return [
        Target(
            measure=partial(_area_logits, model, i, chosen == i),
            index=i,
            label=names[i],
            score=float(shares[i]),
            stage=stage,
        )
        for i in wanted
    ]
