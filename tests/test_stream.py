"""Rows of pictures to rows of results: order, batches, what is read ahead, and what memory it takes."""

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import davit.inference.stream as stream_module
from davit.decoding import SUFFIXES, ImageError
from davit.inference.predictor import Predictor
from davit.inference.stream import map_ahead, predict_stream
from davit.inference.stream_files import PictureFiles
from davit.preprocessing import Preprocessing
from davit.structures import Classification, Detections, Segmentation
from spoken_models import model_of
from test_predict import tiny

MODELS = {"classifier": tiny, "mask_rcnn": lambda: model_of("mask_rcnn"), "segmenter": lambda: model_of("segmenter")}


class Brightness:
    """A backend that knows three classes of brightness, and notes what it is given."""

    kind = "classification"
    classes = ("dark", "grey", "bright")
    device = torch.device("cpu")

    def __init__(self, size: int = 8) -> None:
        self.preprocessing = Preprocessing(size=(size, size), fit="squash", mean=(0.5,) * 3, std=(0.5,) * 3)
        self.config = None
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, images: Tensor) -> Tensor:  # noqa: D102 - see Backend
        self.shapes.append(tuple(images.shape))
        mean = images.mean((1, 2, 3))
        return torch.stack([-mean, 0.3 - mean.abs(), mean], 1)


def picture(path: Path, number: int, size: tuple[int, int] = (12, 10)) -> Path:
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 60, (size[1], size[0], 3)) + rng.integers(0, 190, 3)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """Pictures of four sizes, some broken, in an order that mixes them."""
    sizes = [(120, 90), (90, 120), (60, 60), (120, 90), (200, 50)]
    paths = [picture(tmp_path / f"{number:02d}.png", number, sizes[number * 7 % 5]) for number in range(23)]
    for broken in (0, 9, 10, 22):
        paths[broken].write_bytes(b"no picture")
    return paths


def plain(result: Classification | Detections | Segmentation | ImageError) -> object:
    """A result as values that can be compared."""
    return str(result) if isinstance(result, ImageError) else result.to_json()


def close(ours: object, theirs: object) -> bool:
    if isinstance(ours, Classification) and isinstance(theirs, Classification):
        same = ours.indices == theirs.indices and ours.source == theirs.source
        return same and np.allclose(ours.scores, theirs.scores, atol=1e-4)
    if isinstance(ours, Segmentation) and isinstance(theirs, Segmentation):
        return ours.source == theirs.source and float((ours.classes != theirs.classes).float().mean()) < 1e-3
    if isinstance(ours, Detections) and isinstance(theirs, Detections):
        same = ours.source == theirs.source and ours.labels == theirs.labels
        near = torch.allclose(ours.scores, theirs.scores, atol=1e-4)
        return same and near and torch.allclose(ours.boxes, theirs.boxes, atol=0.01)
    return str(ours) == str(theirs)


@pytest.mark.parametrize("kind", MODELS)
def test_answers_are_those_of_each_picture_alone(kind: str, mixed: list[Path]) -> None:
    torch.set_num_threads(1)
    model = MODELS[kind]()
    alone = [next(Predictor(model, batch_size=1, device="cpu").stream([path])) for path in mixed]
    assert sum(isinstance(result, ImageError) for result in alone) == 4
    for batch_size, workers in ((1, 2), (4, 0), (4, 3), (7, 1), (50, 2)):
        predictor = Predictor(model, batch_size=batch_size, device="cpu")
        together = list(predict_stream(predictor, mixed, workers=workers))
        assert all(close(*pair) for pair in zip(together, alone, strict=True))


@pytest.mark.parametrize("kind", MODELS)
def test_going_on_from_any_picture_gives_the_same_numbers(kind: str, mixed: list[Path]) -> None:
    torch.set_num_threads(1)
    predictor = Predictor(MODELS[kind](), batch_size=4, device="cpu")
    whole = [plain(result) for result in predict_stream(predictor, mixed)]
    for first in range(0, len(mixed) + 2, 1 if kind == "classifier" else 3):
        assert [plain(result) for result in predict_stream(predictor, mixed, first=first)] == whole[first:]


def test_going_on_computes_only_what_is_left(tmp_path: Path) -> None:
    """And of the block in which it goes on, the groups that hold something new."""
    sizes = [(8, 8), (4, 8), (8, 8), (8, 8), (4, 8), (4, 8), (8, 8), (8, 8)]
    paths = [picture(tmp_path / f"{number}.png", number, size) for number, size in enumerate(sizes)]
    backend = Brightness()
    backend.preprocessing = Preprocessing(size=(8, 8), fit="within", mean=(0.5,) * 3, std=(0.5,) * 3)
    predictor = Predictor(backend, batch_size=4)
    decoded: list[str] = []
    counted = (decoded.append(path.name) or path for path in paths)
    assert len(list(predict_stream(predictor, paths, workers=0))) == 8
    assert sorted(backend.shapes) == [(1, 3, 8, 4), (2, 3, 8, 4), (2, 3, 8, 8), (3, 3, 8, 8)]
    backend.shapes.clear()
    assert len(list(predict_stream(predictor, counted, first=6))) == 2
    assert backend.shapes == [(2, 3, 8, 8)]
    backend.shapes.clear()
    assert len(list(predict_stream(predictor, paths, first=2))) == 6
    assert (1, 3, 8, 4) not in backend.shapes


def test_pictures_are_decoded_while_the_model_computes(tmp_path: Path) -> None:
    """The first block is not answered before the second one is decoded; without threads that never happens."""
    paths = [picture(tmp_path / f"{number}.png", number) for number in range(8)]
    decoded = threading.Semaphore(0)

    class Waiting(Brightness):
        def __call__(self, images: Tensor) -> Tensor:
            if not self.shapes:
                self.overlapped = all(decoded.acquire(timeout=10) for _ in range(8))
            return super().__call__(images)

    waiting, prepare = Waiting(), stream_module.prepare

    def told(*arguments):
        prepared = prepare(*arguments)
        decoded.release()
        return prepared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_module, "prepare", told)
        results = list(predict_stream(Predictor(waiting, batch_size=4), paths, workers=2))
    assert waiting.overlapped
    assert [result.source for result in results] == [str(path) for path in paths]


def test_no_more_than_the_next_block_is_read_ahead(tmp_path: Path) -> None:
    path, asked, most = picture(tmp_path / "a.png", 1), [0], 0

    def endless() -> Iterator[Path]:
        while True:
            asked[0] += 1
            yield path

    results = predict_stream(Predictor(Brightness(), batch_size=5), endless(), workers=3)
    for answered in range(1, 200):
        next(results)
        most = max(most, asked[0] - answered)
    results.close()
    assert most <= 5 + 5 + 1


def test_memory_does_not_grow_with_the_row(tmp_path: Path) -> None:
    """2,000 pictures are 614 MB when prepared."""
    path = picture(tmp_path / "a.png", 1)
    results = predict_stream(Predictor(Brightness(size=160), batch_size=8), [path] * 2000, workers=2)
    sizes = []
    for number, _ in enumerate(results):
        if number % 100 == 99:
            sizes.append(resident())
    assert max(sizes) - sizes[1] < 6e6


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_results_come_in_order_whatever_each_takes() -> None:
    rng = random.Random(0)
    delays = [rng.choice([0, 0, 0.002, 0.02]) for _ in range(100)]

    def slow(number: int) -> int:
        time.sleep(delays[number])
        return number

    for workers, ahead in ((0, 0), (1, 1), (4, 2), (4, 50)):
        assert list(map_ahead(slow, range(100), workers=workers, ahead=ahead)) == list(range(100))


def test_stopping_early_leaves_no_thread_and_no_work() -> None:
    before, begun = threading.active_count(), []

    def note(number: int) -> int:
        begun.append(number)
        time.sleep(0.01)
        return number

    results = map_ahead(note, range(10_000), workers=2, ahead=100)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before
    assert len(begun) < 100


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_ends_the_row_where_it_is(workers: int) -> None:
    def fails(number: int) -> int:
        if number == 7:
            raise RuntimeError("seven")
        return number

    results = map_ahead(fails, range(20), workers=workers, ahead=3)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(RuntimeError, match="seven"):
        next(results)


def test_wrong_arguments() -> None:
    predictor = Predictor(Brightness())
    for wrong in ({"top": 0}, {"workers": -1}, {"first": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
            predict_stream(predictor, [], **wrong)
    assert list(predict_stream(predictor, [])) == []


def test_files_are_listed_as_sorted_paths_are(tmp_path: Path) -> None:
    """In folders whose names sort between those of files, with hidden ones, links, and what is no picture."""
    rng = random.Random(1)
    words = ["a", "b", "a.b", "Z", "a b", "é", "c[1]", ".hidden", "__", "a!", "x.jpg"]
    for _ in range(200):
        folder = tmp_path.joinpath(*(rng.choice(words) for _ in range(rng.randrange(4))))
        if not any(part.is_file() for part in (folder, *folder.parents)):
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / (rng.choice(words) + rng.choice([".jpg", ".PNG", ".txt", ""]))
            if not file.exists():
                file.touch()
    (tmp_path / "a link").symlink_to(tmp_path / "a", target_is_directory=True)
    shown = [
        path for path in tmp_path.rglob("*") if not any(p.startswith(".") for p in path.relative_to(tmp_path).parts)
    ]
    wanted = sorted(path for path in shown if path.is_file() and path.suffix.lower() in SUFFIXES)
    files = PictureFiles([str(tmp_path)])
    assert len(wanted) > 20
    assert list(files) == wanted
    assert list(files) == wanted  # as often as you like
    assert len(files) == len(wanted)


def test_names_of_a_large_folder_are_held_once(tmp_path: Path) -> None:
    """Some hundred bytes each, and no path objects."""
    import tracemalloc

    for number in range(3000):
        (tmp_path / f"{number:08d}.jpg").touch()
    files = PictureFiles([str(tmp_path)])
    tracemalloc.start()
    last = ""
    for path in files:
        assert path.name > last
        last = path.name
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3000 * 130
