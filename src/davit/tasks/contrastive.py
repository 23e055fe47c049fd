"""Image-text pre-training: the unified contrastive loss (UniCL, arXiv 2204.03610), exact over processes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from davit.evaluation.retrieval import RetrievalMetric
from davit.models.clip import ImageTextOutput
from davit.structures import Batch


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """How the loss is made.

    Attributes:
        rows: rows of the matrix of similarities computed at once; memory grows by this times the whole batch.
    """

    rows: int = 1024

    def __post_init__(self) -> None:
        """Refuse a matrix without rows."""
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")


class ContrastiveTask:
    """The loss of an image-text model over images, texts and labels.

    Attributes:
        score: key of the metric that chooses the best model.
    """

    score = "image_to_text_r1"

    def __init__(self, config: ContrastiveConfig) -> None:
        """Keep the settings."""
        self.config = config

    def losses(self, model: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """Return the mean of both directions; over processes, the part of it that DDP's average makes whole."""
        outputs: ImageTextOutput = model(batch.images, batch.texts)
        assert outputs.texts is not None
        loss = unicl_loss(outputs.images, outputs.texts, outputs.scale, batch.targets[:, 0], rows=self.config.rows)
        return {"loss": loss}

    def metric(self) -> RetrievalMetric:
        """Return a fresh metric."""
        return RetrievalMetric()


def unicl_loss(images: Tensor, texts: Tensor, scale: Tensor, labels: Tensor, *, rows: int = 1024) -> Tensor:
    """The bidirectional loss of UniCL (equations 1 to 3), half the sum of both directions.

    Every pair of one label is a positive of every other. With a label for each pair it is CLIP's loss; with a label for
    each class, whose texts are alike, it is label-supervised contrastive learning. Under torch.distributed all
    processes call it, each with its own pairs, of which it may have any number, even none; each gets its share times
    the number of processes, so that the mean over them is the loss of the whole batch, and so are the gradients.

    Args:
        images: (n, embedding), of length 1.
        texts: those of the same pairs, (n, embedding), of length 1.
        scale: inverse temperature, ().
        labels: (n,) int64; alike for pairs that mean the same.
        rows: rows of the similarities computed at once. They are computed anew in the backward pass, so that memory
            grows with the batch, not with its square.

    Returns:
        The loss, (), float32 or better.
    """
    images, texts = (x if x.dtype == torch.float64 else x.float() for x in (images, texts))
    scale = scale.to(images.dtype)
    world = dist.get_world_size() if dist.is_initialized() else 1
    all_images, all_texts, all_labels = (images, texts, labels) if world == 1 else _gather(images, texts, labels)
    if not len(all_labels):
        raise ValueError("a contrastive loss needs at least one pair")
    # All is in the graph of every process, also of one without pairs: their backward passes meet in exchanges.
    total = (all_images.sum() + all_texts.sum() + scale) * 0
    for start in range(0, len(labels), rows):
        part = slice(start, start + rows)
        for own, others in ((images, all_texts), (texts, all_images)):
            total = total + checkpoint(
                _surprise, own[part], others, scale, labels[part], all_labels, use_reentrant=False
            )
    return total * world / (2 * len(all_labels))


def _surprise(own: Tensor, others: Tensor, scale: Tensor, labels: Tensor, all_labels: Tensor) -> Tensor:
    """Sum over rows of the mean, over a row's positives, of minus their log-probabilities."""
    logits = scale * own @ others.T
    positive = labels[:, None] == all_labels
    wanted = logits.masked_fill(~positive, 0).sum(1) / positive.sum(1)
    return (logits.logsumexp(1) - wanted).sum()


class _Everyone(torch.autograd.Function):
    """The tensors of all processes, equal in size: (n, ...) to (processes, n, ...)."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:  # type: ignore[bad-override]
        """Gather."""
        found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(found, own.contiguous())
        return torch.stack(found)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[bad-override]
        """Sum what all processes ask of one's own."""
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]


def _gather(images: Tensor, texts: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those of all processes, by rank; gradients go back to whose they are."""
    count = torch.tensor([len(labels)], device=labels.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    lengths = [int(c) for c in counts]
    most = max(lengths)
    padded = labels.new_zeros(most)
    padded[: len(labels)] = labels
    places = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(places, padded)
    vectors = torch.cat([images, texts], dim=1)
    vectors = torch.cat([vectors, vectors.new_zeros(most - len(labels), vectors.shape[1])])
    found = _Everyone.apply(vectors)
    whole = torch.cat([part[:length] for part, length in zip(found, lengths, strict=True)])
    all_images, all_texts = whole.split(images.shape[1], dim=1)
    return all_images, all_texts, torch.cat([part[:n] for part, n in zip(places, lengths, strict=True)])
