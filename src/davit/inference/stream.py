"""A long row of pictures to results: decoded and prepared in threads while the model computes."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import Image

from davit.cpus import usual_workers
from davit.decoding import ImageError, as_shown, read_image
from davit.inference.backends.protocol import Backend
from davit.inference.results import Picture, Prepared, Result, read_outputs
from davit.preprocessing import Preprocessing

if TYPE_CHECKING:
    from davit.inference.predictor import Predictor


T = TypeVar("T")
R = TypeVar("R")


def predict_stream(
    predictor: "Predictor",
    images: Iterable[Picture],
    *,
    top: int = 5,
    workers: int | None = None,
    first: int = 0,
) -> Generator[Result | ImageError]:
    """Yield one result for each image, in order; for an image that cannot be decoded its error.

    The images are dealt into blocks of the predictor's batch size. Those of a block that have one size after
    preprocessing are computed together, and never padded for another's sake. While a block is computed, the next one is
    decoded; memory holds these two, however long the row. Close the iterator (`contextlib.closing`) to stop early.

    Args:
        predictor: what computes.
        images: paths, bytes of files, or PIL images; taken one by one, as they are needed.
        top: how many classes of a classification; fewer where the model has fewer.
        workers: threads that decode; 0 decodes in the caller's, and nothing ahead; None takes as many as there are
            processors, at most eight. Threads, because Pillow and numpy let others run while they work.
        first: results wanted from this image on. The blocks stay as they would be from the first image on, so that
            every number is the same, to the bit, as without a break.

    Raises:
        ValueError: `top` below 1, or `workers` or `first` below 0; outputs that are NaN.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    if first < 0:
        raise ValueError(f"first must be at least 0, got {first}")
    return _stream(predictor.backend, predictor.batch_size, images, top, workers, first)


def _stream(
    backend: Backend, size: int, images: Iterable[Picture], top: int, workers: int | None, first: int
) -> Generator[Result | ImageError]:
    begin = first - first % size
    numbered = zip(count(begin), islice(images, begin, None), strict=False)
    workers = usual_workers() if workers is None else workers
    with closing(
        map_ahead(lambda one: prepare(one[1], backend.preprocessing, one[0]), numbered, workers=workers, ahead=size)
    ) as prepared:
        while block := list(islice(prepared, size)):
            yield from _answers(backend, block, top, max(first - begin, 0))
            begin += size


def map_ahead(function: Callable[[T], R], items: Iterable[T], *, workers: int, ahead: int) -> Generator[R]:
    """Yield `function(item)` for each item, in order, computed in threads before it is asked for.

    Args:
        function: may run for several items at once.
        items: taken one by one by the caller's thread.
        workers: threads; 0 calls the function when its result is asked for.
        ahead: items taken beyond the one asked for.
    """
    if workers == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="davit") as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def prepare(image: Picture, preprocessing: Preprocessing, position: int) -> Prepared | ImageError:
    """Decode an image and bring it to what the model takes; an image without a path is called by its position."""
    name = "" if isinstance(image, str | Path) else f"image {position}"
    try:
        picture = _shown(image, name) if isinstance(image, Image.Image) else read_image(image, name=name)
    except ImageError as error:
        return error
    return Prepared(
        pixels=preprocessing(picture),
        size=(picture.height, picture.width),
        source=str(image) if isinstance(image, str | Path) else None,
    )


def _answers(
    backend: Backend, block: Sequence[Prepared | ImageError], top: int, first: int
) -> Iterator[Result | ImageError]:
    """Compute a block from its place `first` on; whole groups, so that their numbers do not depend on `first`."""
    groups: dict[tuple[int, int], list[tuple[int, Prepared]]] = {}
    for place, prepared in enumerate(block):
        if isinstance(prepared, Prepared):
            groups.setdefault(prepared.resized, []).append((place, prepared))
    outputs: dict[int, Any] = {}
    for group in groups.values():
        if group[-1][0] >= first:
            computed = backend(torch.stack([prepared.pixels for _, prepared in group]))
            outputs |= {place: computed[row : row + 1] for row, (place, _) in enumerate(group)}
    for place, prepared in enumerate(block[first:], first):
        if isinstance(prepared, ImageError):
            yield prepared
        else:  # only now, for masks of whole pictures take more memory than all else
            yield from read_outputs(backend.kind, outputs.pop(place), [prepared], backend.classes, top)


def _shown(image: Image.Image, name: str) -> Image.Image:
    """What `read_image` would have made of the file; a picture opened lazily is decoded only here, so it may fail."""
    try:
        return as_shown(image)
    except Exception as error:  # Pillow raises nearly every type on damaged files
        raise ImageError(f"{name}: cannot be decoded ({error})") from error
