"""Pictures to classes, objects or maps, as the model has it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from davit.decoding import ImageError
from davit.inference.backends import BackendName
from davit.inference.backends.choosing import make_backend
from davit.inference.backends.opening import open_backend
from davit.inference.backends.protocol import Backend
from davit.inference.results import Picture, Result
from davit.inference.stream import predict_stream
from davit.inference.zero_shot import Labels


class Predictor:
    """Decode, prepare, compute, name: `Predictor.load("model.safetensors")("cat.jpg")`."""

    def __init__(
        self,
        model: nn.Module | Backend,
        *,
        batch_size: int = 16,
        device: str | torch.device | None = None,
        backend: BackendName = "eager",
    ) -> None:
        """Predict with a model, which is moved to the device and into evaluation mode, or with a backend.

        Args:
            model: a classifier, detector or segmenter with its preprocessing, or a ready backend.
            batch_size: images computed at once.
            device: for models; None takes the graphics card if there is one.
            backend: what computes a model: "eager" is PyTorch, "native" our engine for CPUs, "auto" the faster of the
                two, measured on the first batch and remembered on this machine.

        Raises:
            ValueError: a model without preprocessing, an unusable device or backend, or a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.backend: Backend = make_backend(model, backend, device) if isinstance(model, nn.Module) else model
        self.batch_size = batch_size

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        variant: str | None = None,
        batch_size: int = 16,
        device: str | torch.device | None = None,
        backend: BackendName = "eager",
        tell: Callable[[str], None] | None = None,
        trust: bool = False,
        labels: Sequence[str] | Labels | None = None,
    ) -> "Predictor":
        """Predict with a checkpoint, with public weights by name (see `davit.load`), or with a file of `davit export`.

        `backend` is what computes a checkpoint; `tell` is called with one line once "auto" has chosen. `trust` opens
        files that are code, too: those of AOTInductor. `labels` are the classes that an image-text model looks for:
        names, or `davit.inference.zero_shot.Labels` with templates.

        Raises:
            ValueError: unknown or unusable weights, a backbone without a head, or an unusable device or backend.
            OSError: the file cannot be read.
        """
        if labels is not None and not isinstance(labels, Labels):
            labels = Labels(names=tuple(labels))
        opened = open_backend(
            source, variant=variant, device=device, backend=backend, tell=tell, trust=trust, labels=labels
        )
        return cls(opened, batch_size=batch_size)

    def __call__(self, images: Picture | Iterable[Picture], top: int = 5) -> list[Result]:
        """Return what the model finds in each image, in order.

        Args:
            images: one or several: paths, bytes of files, or PIL images.
            top: how many classes of a classification; fewer where the model has fewer.

        Returns:
            For each image a `Classification`, `Detections`, `Segmentation` or `Embedding`, as the model has it.

        Raises:
            ImageError: an image cannot be decoded; it names which. `stream` goes on with the others instead.
        """
        pictures = [images] if isinstance(images, str | Path | bytes | Image.Image) else images
        results = []
        for result in self.stream(pictures, top):
            if isinstance(result, ImageError):
                raise result
            results.append(result)
        return results

    def stream(self, images: Iterable[Picture], top: int = 5) -> Iterator[Result | ImageError]:
        """Yield one result per image, in order, as batches are done; for an image that cannot be decoded its error.

        Never more than a batch of images is in memory, however long the iterable. `davit.inference.stream` decodes in
        threads besides.
        """
        return predict_stream(self, images, top=top, workers=0)
