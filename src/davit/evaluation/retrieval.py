"""Retrieval between images and texts: how often what belongs together is found first."""

import numpy as np
import torch
from torch import Tensor

from davit.evaluation.evaluate import Exchange
from davit.models.clip import ImageTextOutput

RANKS = (1, 5, 10)
ROWS = 1024  # queries compared at once


class RetrievalMetric:
    """Recall over all images and texts of a data set, both ways.

    What has one label belongs together: an image and all its captions, or images whose captions are the same. A query
    finds at rank k if one of its own is among the k most similar. An image with several captions counts once, as query
    and among the answers.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, outputs: ImageTextOutput, targets: Tensor) -> None:
        """Keep the vectors of a batch of pairs; `targets` are label and number of each image, (B, 2)."""
        assert outputs.texts is not None
        self._parts.append((outputs.images.float().cpu(), outputs.texts.float().cpu(), targets.cpu()))

    def merge(self, exchange: Exchange) -> None:
        """Put together what all processes embedded, by rank."""
        self._parts = [part for parts in exchange.gather(self._parts) for part in parts]

    def compute(self) -> dict[str, float]:
        """Return `image_to_text_r1`, `_r5`, `_r10`, `text_to_image_r1`, ... as fractions, and `count` of images."""
        if not self._parts:
            return {"count": 0}
        images, texts, targets = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        first = torch.from_numpy(np.unique(targets[:, 1].numpy(), return_index=True)[1])
        images, labels = images[first], targets[first, 0]
        scores = recalls(images, labels, texts, targets[:, 0], "image_to_text")
        scores |= recalls(texts, targets[:, 0], images, labels, "text_to_image")
        return scores | {"count": len(images)}


def recalls(queries: Tensor, wanted: Tensor, others: Tensor, labels: Tensor, name: str) -> dict[str, float]:
    """Recall at `RANKS`, as `NAME_r1` and so on.

    Args:
        queries: (N, embedding).
        wanted: label of each, (N,); at least one of the others has it.
        others: (M, embedding), in which the queries' own are looked for.
        labels: theirs, (M,).
        name: what the keys begin with.
    """
    starts = range(0, len(queries), ROWS)
    ranks = torch.cat([_rank(queries[i : i + ROWS], others, wanted[i : i + ROWS], labels) for i in starts])
    return {f"{name}_r{k}": float((ranks < k).double().mean()) for k in RANKS}


def _rank(queries: Tensor, others: Tensor, wanted: Tensor, labels: Tensor) -> Tensor:
    """How many strangers lie before a query's best own; those equally similar count, so that ties are no luck."""
    similar = queries @ others.T
    own = wanted[:, None] == labels
    best = similar.masked_fill(~own, -torch.inf).max(1, keepdim=True).values
    before = ~own & ~(similar < best)  # what is not a number is before, too
    return torch.where(best.isnan().squeeze(1), len(labels), before.sum(1))
