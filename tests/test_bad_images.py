"""Bad images and classes that moved: the right answer, or one error with a name; never a shifted score."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import davit
from davit.cli import main
from davit.data.evaluation_loader import evaluation_batches
from davit.data.folder import ClassFolder
from davit.data.image_facts import image_facts
from davit.data.images import find_images
from davit.data.shard_writer import write_shards
from davit.data.tolerant import Tolerant
from davit.decoding import ImageError, read_image
from davit.evaluation.accuracy import Accuracy
from davit.evaluation.evaluate import evaluate
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.preprocessing import Preprocessing
from odd_pictures import FAMILIES
from runs import colour_folder

CLASSES = ("bird", "cat", "dog", "fish")
SHADES = dict(zip(CLASSES, (10, 90, 170, 250), strict=True))
PLAIN = Preprocessing(size=(8, 8), crop=1.0, mean=(0.0,), std=(1.0,))


@pytest.mark.parametrize("family", FAMILIES)
def test_odd_pictures_in_shards_decode_as_their_files_do(family: str, tmp_path: Path) -> None:
    """1,008 of them: the same pixels, or one error that names shard and member; and the check says which are which."""
    rng = random.Random(f"shards {family}")
    (tmp_path / "data" / "a").mkdir(parents=True)
    for number in range(63):
        (tmp_path / "data" / "a" / f"{number:02d}.png").write_bytes(FAMILIES[family](rng)[0])
    folder = ClassFolder(tmp_path / "data")
    write_shards(tmp_path / "data", tmp_path / "shards", 1_000_000)
    shards = find_images(tmp_path / "shards").open("all")
    for index in range(63):
        data = folder.encoded(index)
        assert shards.encoded(index) == data
        fault = image_facts("x", data, decode=True).fault
        try:
            expected = read_image(folder.paths[index])
        except ImageError:
            assert fault
            with pytest.raises(ImageError, match=rf"all/00000\.tar: a/{index:02d}\.png: "):
                shards[index]
        else:
            assert not fault
            assert np.array_equal(shards[index][0], expected)


def shade_folder(root: Path, names: dict[str, str]) -> Path:
    """Classes told by their shade, under other names."""
    for true, shown in names.items():
        (root / shown).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (8, 8), SHADES[true] + number).save(root / shown / f"{number}.png")
    return root


def knows(classes: tuple[str, ...]):
    """A model that is always right, with its classes in any order."""

    def model(images: Tensor) -> Tensor:  # (B, 1, 8, 8)
        shade = images.mean((1, 2, 3))[:, None] * 255
        return -(shade - torch.tensor([float(SHADES[name]) for name in classes])).abs()

    return model


def accuracy(root: Path, classes: tuple[str, ...], *, allow_missing: bool = False) -> dict[str, float]:
    images = find_images(root).open("all", classes, allow_missing=allow_missing)
    batches = evaluation_batches(images, PLAIN, batch_size=5, workers=0)
    return evaluate(knows(classes), batches, Accuracy(len(classes)))


@pytest.mark.parametrize("sharded", [False, True])
def test_every_order_of_classes_gives_the_same_accuracy_or_a_refusal(tmp_path: Path, sharded: bool) -> None:
    """24 orders of the model's classes x folders as they are, one missing, renamed, and all names exchanged."""

    def placed(name: str, names: dict[str, str]) -> Path:
        root = shade_folder(tmp_path / name, names)
        if sharded:
            write_shards(root, tmp_path / f"{name}.shards", 100_000)
        return tmp_path / f"{name}.shards" if sharded else root

    same = {name: name for name in CLASSES}
    whole = placed("whole", same)
    lacking = placed("lacking", {name: name for name in CLASSES if name != "dog"})
    renamed = placed("renamed", same | {"dog": "aardvark"})
    capital = placed("capital", same | {"dog": "Dog"})
    for order in itertools.permutations(CLASSES):
        assert accuracy(whole, order) == {"top1": 1.0, "top5": 1.0, "count": 12}
        assert accuracy(lacking, order, allow_missing=True) == {"top1": 1.0, "top5": 1.0, "count": 9}
        with pytest.raises(ValueError, match="'dog'"):
            accuracy(lacking, order)
        for root in (renamed, capital):
            for allow_missing in (False, True):
                with pytest.raises(ValueError, match="fit no class"):
                    accuracy(root, order, allow_missing=allow_missing)


@pytest.mark.parametrize("order", list(itertools.permutations(CLASSES)))
def test_exchanged_folder_names_count_as_the_names_say(tmp_path: Path, order: tuple[str, ...]) -> None:
    """Names decide: where contents were exchanged, exactly those are wrong."""
    root = shade_folder(tmp_path / "data", dict(zip(CLASSES, order, strict=True)))
    right = sum(a == b for a, b in zip(CLASSES, order, strict=True))
    assert accuracy(root, CLASSES)["top1"] == right / 4


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = Classifier(
        ClassifierConfig(backbone=DaViTConfig(widths=(32, 32, 32, 32), depths=(1, 1, 1, 1)), num_classes=3)
    )
    nn.init.normal_(model.head.weight)
    model.preprocessing, model.classes = Preprocessing.imagenet(32), ("red", "blue", "green")
    davit.save(model, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def scored(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict, str]:
    code = main(["evaluate", *arguments, "--json", "--workers", "0", "--device", "cpu"])
    said = capsys.readouterr()
    return code, json.loads(said.out or "{}"), said.err


@pytest.mark.parametrize("sharded", [False, True])
def test_evaluation_stops_at_a_bad_image_or_says_how_many_it_left_out(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sharded: bool
) -> None:
    root = colour_folder(tmp_path / "data", images=4)
    good = scored([str(checkpoint), "--data", str(root)], capsys)[1]
    bad = {"red": (root / "red" / "1.png"), "blue": (root / "blue" / "3.png")}
    for path in bad.values():
        path.write_bytes(path.read_bytes()[:60])
    if sharded:
        write_shards(root, tmp_path / "shards", 100_000)
        root = tmp_path / "shards"
    code, report, err = scored([str(checkpoint), "--data", str(root)], capsys)
    assert (code, report) == (2, {})
    assert "blue/3.png: is " in err
    code, report, err = scored([str(checkpoint), "--data", str(root), "--allow-missing"], capsys)
    assert code == 0
    assert report["count"] == good["count"] - 2 == 10
    assert [entry["count"] for entry in report["per_class"].values()] == [3, 3, 4]
    assert len(report["left_out"]) == 2
    assert all(f"{name}/" in "".join(report["left_out"]) for name in bad)
    assert err.count("left out: ") == 2


def test_what_is_left_out_changes_no_other_score(tmp_path: Path) -> None:
    root = colour_folder(tmp_path / "data", images=6)

    def counts(workers: int) -> tuple[list[Tensor], list[str]]:
        images, left_out = Tolerant(ClassFolder(root)), []
        batches = evaluation_batches(images, Preprocessing.imagenet(8), batch_size=4, workers=workers)
        return [pixels for batch in images.without_faults(batches, left_out) for pixels in batch.images], left_out

    before, left_out = counts(0)
    assert (len(before), left_out) == (18, [])
    for number in range(6):
        (root / "green" / f"{number}.png").write_bytes(b"")
    for workers in (0, 2):
        after, left_out = counts(workers)
        assert len(left_out) == 6
        assert all(torch.equal(a, b) for a, b in zip(after, before[:6] + before[12:], strict=True))
