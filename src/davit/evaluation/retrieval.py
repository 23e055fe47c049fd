"""Retrieval between images and texts: how often what belongs together is found first."""

import torch
from torch import Tensor

from davit.evaluation.evaluate import Exchange
from davit.models.clip import ImageTextOutput

RANKS = (1, 5, 10)
ROWS = 1024  # queries compared at once


class RetrievalMetric:
    """Recall over all images and texts of a data set, both ways.

    What has one label belongs together: a picture and all its captions, or pictures whose captions are the same. A
    query finds at rank k if one of its own is among the k most similar.

    Attributes:
        images: (N, embedding) on the CPU, in the order in which they came.
        texts: (N, embedding), of the same pairs.
        labels: (N,) int64.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def images(self) -> Tensor:
        """Vectors of the images."""
        return torch.cat([part[0] for part in self._parts])

    @property
    def texts(self) -> Tensor:
        """Vectors of the texts."""
        return torch.cat([part[1] for part in self._parts])

    @property
    def labels(self) -> Tensor:
        """What belongs together."""
        return torch.cat([part[2] for part in self._parts])

    def update(self, outputs: ImageTextOutput, labels: Tensor) -> None:
        """Keep the vectors of a batch of pairs."""
        assert outputs.texts is not None
        self._parts.append((outputs.images.float().cpu(), outputs.texts.float().cpu(), labels.cpu()))

    def merge(self, exchange: Exchange) -> None:
        """Put together what all processes embedded, by rank."""
        self._parts = [part for parts in exchange.gather(self._parts) for part in parts]

    def compute(self) -> dict[str, float]:
        """Return `image_to_text_r1`, `_r5`, `_r10`, `text_to_image_r1`, ... as fractions, and `count` of pairs."""
        if not self._parts:
            return {"count": 0}
        images, texts, labels = self.images, self.texts, self.labels
        scores = recalls(images, texts, labels, "image_to_text") | recalls(texts, images, labels, "text_to_image")
        return scores | {"count": len(labels)}


def recalls(queries: Tensor, others: Tensor, labels: Tensor, name: str) -> dict[str, float]:
    """Recall at `RANKS` of pairs of vectors, as `NAME_r1` and so on.

    Args:
        queries: (N, embedding).
        others: (N, embedding), in which the queries' own are looked for.
        labels: (N,), of both.
        name: what the keys begin with.
    """
    ranks = torch.cat([_rank(queries[i : i + ROWS], others, labels[i : i + ROWS], labels) for i in _starts(labels)])
    return {f"{name}_r{k}": float((ranks < k).double().mean()) for k in RANKS}


def _rank(queries: Tensor, others: Tensor, wanted: Tensor, labels: Tensor) -> Tensor:
    """How many strangers lie before a query's best own; those equally similar count, so that ties are no luck."""
    similar = queries @ others.T
    own = wanted[:, None] == labels
    best = similar.masked_fill(~own, -torch.inf).max(1, keepdim=True).values
    before = ~own & ~(similar < best)  # what is not a number is before, too
    return torch.where(best.isnan().squeeze(1), len(labels), before.sum(1))


def _starts(labels: Tensor) -> range:
    return range(0, len(labels), ROWS)
