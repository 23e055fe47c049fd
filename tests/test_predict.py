"""From images to classes, in Python and by command."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import davit
from davit.cli import main
from davit.decoding import ImageError
from davit.inference.predictor import Predictor
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.preprocessing import Preprocessing
from davit.structures import Classification

CLASSES = ("cat", "dog", "fish", "bird")


def tiny(classes: tuple[str, ...] = CLASSES) -> Classifier:
    backbone = DaViTConfig(widths=(32, 64, 96, 128), depths=(1, 1, 1, 1))
    model = Classifier(ClassifierConfig(backbone=backbone, num_classes=4))
    nn.init.normal_(model.head.weight)
    model.preprocessing = Preprocessing.imagenet(32)
    model.classes = classes
    return model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    davit.save(tiny(), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    paths = [tmp_path / "photos" / name for name in ("a.png", "b [1].jpg", "c.webp", "more/d.bmp", "more/e.png")]
    for number, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 256, (40 + number, 60, 3)).astype(np.uint8)).save(path)
    return paths


def test_answers_are_the_models_own(photos: list[Path]) -> None:
    model = tiny().eval()
    assert model.preprocessing is not None
    image = Image.open(photos[0]).convert("RGB")
    with torch.inference_mode():
        scores = model(model.preprocessing(image)[None]).softmax(-1)[0]
    result = Predictor(model, device="cpu")(photos[0], top=3)[0]
    assert result.indices == tuple(scores.argsort(descending=True)[:3].tolist())
    assert result.labels == tuple(CLASSES[index] for index in result.indices)
    assert result.scores == pytest.approx([float(scores[index]) for index in result.indices], abs=1e-6)
    assert result.source == str(photos[0])


def test_paths_bytes_and_pictures_give_the_same_answer(photos: list[Path]) -> None:
    predictor = Predictor(tiny(), device="cpu")
    path = photos[1]
    answers = predictor([path, str(path), path.read_bytes(), Image.open(path)])
    assert len({answer.scores for answer in answers}) <= 2  # equal, but for rounding
    assert {answer.indices for answer in answers} == {answers[0].indices}
    assert [answer.source for answer in answers] == [str(path), str(path), None, None]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_answers_do_not_depend_on_batch_mates(photos: list[Path], batch_size: int) -> None:
    model = tiny()
    together = Predictor(model, batch_size=batch_size, device="cpu")(photos)
    for path, answer in zip(photos, together, strict=True):
        alone = Predictor(model, batch_size=1, device="cpu")(path)[0]
        assert answer.source == str(path)
        assert answer.indices == alone.indices
        assert answer.scores == pytest.approx(alone.scores, abs=1e-5)


def test_one_broken_image_spoils_no_other(photos: list[Path]) -> None:
    pictures: list[Path | bytes] = [*photos, b"no picture", *photos]
    results = list(Predictor(tiny(), batch_size=4, device="cpu").stream(pictures))
    assert [isinstance(result, Classification) for result in results] == [True] * 5 + [False] + [True] * 5
    assert "image 5" in str(results[5])
    with pytest.raises(ImageError, match="image 5"):
        Predictor(tiny(), device="cpu")(pictures)


def test_a_lazily_opened_broken_picture_is_an_image_error(photos: list[Path]) -> None:
    cut = Image.open(io.BytesIO(photos[0].read_bytes()[:-500]))
    with pytest.raises(ImageError, match="image 0"):
        Predictor(tiny(), device="cpu")(cut)


def test_images_are_read_as_they_are_needed(photos: list[Path]) -> None:
    asked: list[int] = []

    def endless() -> Iterator[Path]:
        for number in range(1_000_000):
            asked.append(number)
            yield photos[0]

    stream = Predictor(tiny(), batch_size=3, device="cpu").stream(endless())
    next(stream)
    assert len(asked) == 3


def test_models_without_names_or_preprocessing(photos: list[Path]) -> None:
    answer = Predictor(tiny(classes=()), device="cpu")(photos[0], top=99)[0]
    assert answer.labels == tuple(str(index) for index in answer.indices)
    assert len(answer.labels) == 4
    model = tiny()
    model.preprocessing = None
    with pytest.raises(ValueError, match="preprocessing"):
        Predictor(model)
    with pytest.raises(ValueError, match="4 logits but 2 class names"):
        Predictor(tiny(classes=("a", "b")), device="cpu")(photos[0])


def test_wrong_arguments(photos: list[Path]) -> None:
    with pytest.raises(ValueError, match="device 'moon'"):
        Predictor(tiny(), device="moon")
    with pytest.raises(ValueError, match="batch_size"):
        Predictor(tiny(), batch_size=0)
    with pytest.raises(ValueError, match="top"):
        Predictor(tiny(), device="cpu")(photos, top=0)
    model = tiny()
    nn.init.constant_(model.head.weight, torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        Predictor(model, device="cpu")(photos)


def run(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["predict", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_prints_a_line_per_image(
    checkpoint: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(["--model", checkpoint, photos[0].parent, "--top", 2], capsys)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(path) for path in photos]
    best = Predictor.load(checkpoint)(photos[0], top=2)[0]
    wanted = "; ".join(f"{label} {100 * score:.1f}%" for label, score in zip(best.labels, best.scores, strict=True))
    assert lines[0] == f"{photos[0]}: {wanted}"


def test_json_is_one_list_with_the_errors_in_it(
    checkpoint: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    photos[2].write_bytes(photos[2].read_bytes()[:50])
    odd = photos[0].parent / "two\nlines.png"
    odd.write_bytes(photos[0].read_bytes())
    code, out, err = run(["--model", checkpoint, "--json", *photos, odd, "--batch-size", 2], capsys)
    assert code == 1
    entries = json.loads(out)
    assert [entry["file"] for entry in entries] == [str(path) for path in (*photos, odd)]
    assert ["error" in entry for entry in entries] == [False, False, True, False, False, False]
    assert sum(best["score"] for best in entries[0]["top"]) == pytest.approx(1, abs=1e-5)
    assert len(err.splitlines()) == 1
    assert str(photos[2]) in err


def test_patterns_and_names_with_brackets(
    checkpoint: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos[0].parent
    code, out, _ = run(["--model", checkpoint, root / "**" / "*.png", photos[1], "--top", 1], capsys)
    assert code == 0
    assert [line.split(": ")[0] for line in out.splitlines()] == [str(photos[n]) for n in (0, 4, 1)]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere.jpg"], "nowhere.jpg: no such file"),
        (["no*where.jpg"], "no file matches"),
        (["{tmp_path}/empty"], "no images in this folder"),
        ([], "at least one image"),
        (["{tmp_path}/photos", "--top", "0"], "top must be"),
        (["{tmp_path}/photos", "--model", "davit_tiny.msft_in2k"], "davit_tiny.msft_in1k"),
    ],
)
@pytest.mark.usefixtures("photos")
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], reason: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    code, out, err = run(["--model", checkpoint, *(a.format(tmp_path=tmp_path) for a in arguments)], capsys)
    assert (code, out) == (2, "")
    assert reason in err
    assert len(err.splitlines()) == 1


def test_pillow_is_not_heard(photos: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Predictor(tiny(), device="cpu")(photos)
    assert caplog.records == []
