"""How good features are, without fine-tuning: nearest neighbours and a linear classifier over frozen vectors."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from davit.structures import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

NEIGHBOURS = 20
TEMPERATURE = 0.07
DECAYS = tuple(10.0**power for power in range(1, -7, -1))  # largest first: each fit starts where the one before ended
_ROWS = 1024  # compared at once


def features(embed: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Return the vector of every image, (N, embedding) float32, and its class, (N,).

    Raises:
        ValueError: vectors that are no numbers.
    """
    vectors: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches:
        vectors.append(embed(batch.images).float().cpu())
        labels.append(batch.targets.cpu())
    found = torch.cat(vectors)
    if not found.isfinite().all():
        raise ValueError("the model computed vectors that are no numbers; its weights are damaged")
    return found, torch.cat(labels)


def nearest_neighbours(
    train: Tensor, labels: Tensor, queries: Tensor, classes: int, *, neighbours: int = NEIGHBOURS
) -> Tensor:
    """Votes of the nearest training vectors by cosine, each weighing exp(cosine / 0.07) (arXiv 1805.01978, 3.4).

    Args:
        train: (N, embedding).
        labels: their classes, (N,).
        queries: (M, embedding).
        classes: number of classes.
        neighbours: how many vote; all, where there are fewer.

    Returns:
        (M, classes).
    """
    train, queries = F.normalize(train, dim=-1), F.normalize(queries, dim=-1)
    votes = []
    for start in range(0, len(queries), _ROWS):
        near, places = (queries[start : start + _ROWS] @ train.T).topk(min(neighbours, len(train)), dim=1)
        weights = ((near - 1) / TEMPERATURE).exp()
        empty = weights.new_zeros(len(weights), classes)
        votes.append(empty.scatter_add(1, labels[places], weights))
    return torch.cat(votes)


class LinearProbe:
    """A linear classifier with a penalty on its weights, fitted to the optimum by L-BFGS.

    Vectors are centred and scaled by the deviation of all their numbers first, so that one penalty means the same for
    every model.

    Attributes:
        weight: (classes, embedding) float64.
        bias: (classes,) float64, without a penalty.
    """

    def __init__(self, embedding: int, classes: int) -> None:
        """Begin with zeros."""
        self.weight = torch.zeros(classes, embedding, dtype=torch.float64)
        self.bias = torch.zeros(classes, dtype=torch.float64)
        self._mean, self._scale = torch.zeros(embedding, dtype=torch.float64), torch.ones((), dtype=torch.float64)

    def fit(self, vectors: Tensor, labels: Tensor, decay: float, *, iterations: int = 300) -> None:
        """Minimise mean cross-entropy + decay / 2 * |weight|^2, from where the classifier stands."""
        self._mean = vectors.double().mean(0)
        self._scale = (vectors.double() - self._mean).square().mean().sqrt().clamp(min=1e-12)
        x = self._prepared(vectors)
        parameters = [self.weight.requires_grad_(), self.bias.requires_grad_()]
        optimizer = torch.optim.LBFGS(
            parameters, max_iter=iterations, tolerance_grad=1e-7, tolerance_change=1e-10, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(x @ self.weight.T + self.bias, labels) + decay / 2 * self.weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        self.weight, self.bias = self.weight.detach(), self.bias.detach()

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return logits, (N, classes)."""
        return self._prepared(vectors) @ self.weight.T + self.bias

    def _prepared(self, vectors: Tensor) -> Tensor:
        return (vectors.double() - self._mean) / self._scale


def fit_linear(
    vectors: Tensor, labels: Tensor, classes: int, held_out: "Sequence[int]", decays: "Sequence[float]" = DECAYS
) -> tuple[LinearProbe, float]:
    """Fit a linear classifier, its penalty chosen on some of the training images; then on all of them.

    Args:
        vectors: of the training images, (N, embedding).
        labels: their classes, (N,).
        classes: number of classes.
        held_out: places of the images on which penalties are compared.
        decays: penalties to compare.

    Returns:
        The classifier and its penalty.
    """
    apart = torch.zeros(len(labels), dtype=torch.bool)
    apart[list(held_out)] = True
    trial = LinearProbe(vectors.shape[1], classes)
    scores: dict[float, tuple[float, float]] = {}
    for decay in sorted(decays, reverse=True):
        trial.fit(vectors[~apart], labels[~apart], decay)
        logits = trial(vectors[apart])
        right = (logits.argmax(1) == labels[apart]).double().mean()
        scores[decay] = (float(right), -float(F.cross_entropy(logits, labels[apart])))
    best = max(scores, key=scores.__getitem__)
    probe = LinearProbe(vectors.shape[1], classes)
    probe.fit(vectors, labels, best)
    return probe, best
