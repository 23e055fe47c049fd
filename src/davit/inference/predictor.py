"""Images to classes."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from davit.decoding import ImageError, as_shown, read_image
from davit.inference.backends.eager import EagerBackend
from davit.inference.backends.protocol import Backend
from davit.structures import Classification

Picture = str | Path | bytes | Image.Image


class Predictor:
    """Decode, prepare, compute, name: `Predictor.load("model.safetensors")("cat.jpg")`."""

    def __init__(
        self,
        model: nn.Module | Backend,
        *,
        batch_size: int = 16,
        device: str | torch.device | None = None,
    ) -> None:
        """Predict with a model, which is moved to the device and into evaluation mode, or with a backend.

        Args:
            model: a classifier with its preprocessing, or a ready backend.
            batch_size: images computed at once.
            device: for models; None takes the graphics card if there is one.

        Raises:
            ValueError: a model without preprocessing, an unusable device, or a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.backend: Backend = EagerBackend(model, device) if isinstance(model, nn.Module) else model
        self.batch_size = batch_size

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        variant: str | None = None,
        batch_size: int = 16,
        device: str | torch.device | None = None,
    ) -> "Predictor":
        """Predict with a checkpoint, or with public weights by name; see `davit.load`.

        Raises:
            ValueError: unknown or unusable weights, or a backbone without a classifier.
            OSError: the file cannot be read.
        """
        from davit.models.classifier import Classifier
        from davit.weights.load import load

        model = load(source, variant=variant)
        if not isinstance(model, Classifier):
            raise ValueError(f"{source} is a backbone without a classifier; it gives features, not classes")
        return cls(model, batch_size=batch_size, device=device)

    def __call__(self, images: Picture | Iterable[Picture], top: int = 5) -> list[Classification]:
        """Return the most likely classes of each image, in order.

        Args:
            images: one or several: paths, bytes of files, or PIL images.
            top: how many classes; fewer where the model has fewer.

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

    def stream(self, images: Iterable[Picture], top: int = 5) -> Iterator[Classification | ImageError]:
        """Yield one result per image, in order, as batches are done; for an image that cannot be decoded its error.

        Never more than a batch of images is in memory, however long the iterable.
        """
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        waiting: list[tuple[str | None, Tensor | ImageError]] = []
        ready = 0
        for position, image in enumerate(images):
            source = str(image) if isinstance(image, str | Path) else None
            pixels = self._prepare(image, position)
            ready += not isinstance(pixels, ImageError)
            waiting.append((source, pixels))
            if ready == self.batch_size or len(waiting) == 4 * self.batch_size:  # many errors must not pile up
                yield from self._finish(waiting, top)
                waiting.clear()
                ready = 0
        yield from self._finish(waiting, top)

    def _prepare(self, image: Picture, position: int) -> Tensor | ImageError:
        name = "" if isinstance(image, str | Path) else f"image {position}"
        try:
            picture = _shown(image, name) if isinstance(image, Image.Image) else read_image(image, name=name)
        except ImageError as error:
            return error
        return self.backend.preprocessing(picture)

    def _finish(
        self, waiting: list[tuple[str | None, Tensor | ImageError]], top: int
    ) -> Iterator[Classification | ImageError]:
        ready = [pixels for _, pixels in waiting if isinstance(pixels, Tensor)]
        scores = iter(self._scores(torch.stack(ready))) if ready else iter(())
        for source, pixels in waiting:
            yield pixels if isinstance(pixels, ImageError) else self._name(next(scores), source, top)

    def _scores(self, images: Tensor) -> Tensor:
        scores = self.backend(images).float().softmax(-1)
        if self.backend.classes and len(self.backend.classes) != scores.shape[-1]:
            raise ValueError(f"the model has {scores.shape[-1]} logits but {len(self.backend.classes)} class names")
        if scores.isnan().any():
            raise ValueError(
                "the model computed NaN; its weights are damaged, or its numbers too small for this device"
            )
        return scores

    def _name(self, scores: Tensor, source: str | None, top: int) -> Classification:
        best = scores.topk(min(top, len(scores)))
        indices = tuple(best.indices.tolist())
        classes = self.backend.classes
        return Classification(
            labels=tuple(classes[index] if classes else str(index) for index in indices),
            indices=indices,
            scores=tuple(best.values.tolist()),
            source=source,
        )


def _shown(image: Image.Image, name: str) -> Image.Image:
    """What `read_image` would have made of the file; a picture opened lazily is decoded only here, so it may fail."""
    try:
        return as_shown(image)
    except Exception as error:  # Pillow raises nearly every type on damaged files
        raise ImageError(f"{name}: cannot be decoded ({error})") from error
