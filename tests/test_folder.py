"""Folders of labelled images: matched with classes by name, split the same way everywhere."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from davit.data.evaluation_loader import evaluation_batches
from davit.data.folder import ClassFolder, split_folder, validation_root
from davit.data.matching import match_classes
from davit.decoding import ImageError
from davit.preprocessing import Preprocessing
from davit.weights.catalog import imagenet_classes

CLASSES = ("cat", "dog", "fish", "bird")
PLAIN = Preprocessing(size=(8, 8), crop=1.0)


def colour(name: str) -> tuple[int, int, int]:
    return {"cat": (255, 0, 0), "dog": (0, 255, 0), "fish": (0, 0, 255), "bird": (255, 255, 0)}.get(name, (9, 9, 9))


def make_folder(root: Path, names: Sequence[str] = CLASSES, images: int = 2) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(images):
            Image.new("RGB", (8, 8), colour(name)).save(root / name / f"{number}.png")
    return root


def test_classes_are_the_sorted_folder_names(tmp_path: Path) -> None:
    folder = ClassFolder(make_folder(tmp_path))
    assert folder.classes == ("bird", "cat", "dog", "fish")
    assert len(folder) == 8
    for index in range(8):
        image, label = folder[index]
        assert image.getpixel((0, 0)) == colour(folder.classes[label])
        assert folder.paths[index].parent.name == folder.classes[label]


def test_deep_hidden_empty_and_other_files(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "cat" / "deep" / "er").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "deep" / "er" / "x.JPG", "JPEG")
    (tmp_path / "cat" / ".hidden.png").touch()
    (tmp_path / "cat" / "deep" / ".thumbs").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "cat" / "notes.txt").touch()
    (tmp_path / "readme.png").touch()
    (tmp_path / "zebra").mkdir()
    folder = ClassFolder(tmp_path)
    assert (len(folder), folder.hidden, folder.skipped, folder.empty) == (9, 3, 2, ("zebra",))
    assert folder.classes == ("bird", "cat", "dog", "fish", "zebra")


@pytest.mark.parametrize("order", list(itertools.permutations(CLASSES)))
def test_the_order_of_the_models_classes_never_shifts_a_label(tmp_path: Path, order: tuple[str, ...]) -> None:
    folder = ClassFolder(make_folder(tmp_path), order)
    assert folder.classes == order
    for index in range(len(folder)):
        image, label = folder[index]
        assert image.getpixel((0, 0)) == colour(order[label])


def test_renamed_and_extra_folders_are_refused_whatever_is_allowed(tmp_path: Path) -> None:
    make_folder(tmp_path, ("cat", "dgo", "fish", "bird"))
    for allow_missing in (False, True):
        with pytest.raises(ValueError, match=r"'dgo' \(did you mean 'dog'\?\)"):
            ClassFolder(tmp_path, CLASSES, allow_missing=allow_missing)


def test_missing_folders_are_refused_unless_allowed(tmp_path: Path) -> None:
    make_folder(tmp_path, ("fish", "cat"))
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match=r"'dog', 'bird'.*--allow-missing"):
        ClassFolder(tmp_path, CLASSES)
    folder = ClassFolder(tmp_path, CLASSES, allow_missing=True)
    assert folder.missing == ("dog", "bird")
    assert set(folder.labels) == {0, 2}


def test_wordnet_ids_match_imagenets_class_names() -> None:
    names = imagenet_classes()
    matching = match_classes(["n01440764", "n02012849", "n03126707"], names, allow_missing=True)
    assert [names[index].split(",")[0] for index in matching.indices.values()] == [
        "tench",
        "crane (n02012849)",
        "crane (n03126707)",
    ]
    assert "WordNet" in matching.note
    fine_tuned = ("golf ball", "tench", "parachute")
    assert match_classes(["n01440764", "n03445777", "n03888257"], fine_tuned).indices == {
        "n01440764": 1,
        "n03445777": 0,
        "n03888257": 2,
    }
    assert match_classes(["tench", "golf ball"], ["n03445777", "n01440764"]).indices == {"tench": 1, "golf ball": 0}


def test_an_unknown_or_ambiguous_wordnet_folder_is_refused() -> None:
    with pytest.raises(ValueError, match="n99999999"):
        match_classes(["n01440764", "n99999999"], imagenet_classes(), allow_missing=True)
    with pytest.raises(ValueError, match="fit no class"):
        match_classes(["n02012849", "n01440764"], ["crane", "tench"])  # a bird or a machine?
    with pytest.raises(ValueError, match="same class"):
        match_classes(["n01440764", "tench"], ["tench", "golf ball"], allow_missing=True)


def test_numbers_are_class_indices_only_where_that_is_certain() -> None:
    numbers = [str(number) for number in range(4)]
    matching = match_classes(numbers, CLASSES)
    assert matching.indices == {"0": 0, "1": 1, "2": 2, "3": 3}
    assert "class indices" in matching.note
    assert match_classes(["000", "002"], CLASSES, allow_missing=True).indices == {"000": 0, "002": 2}
    digits = ["3", "1", "0", "2"]
    assert match_classes(numbers, digits).indices == {"0": 2, "1": 1, "2": 3, "3": 0}  # by name
    for found in (["1", "2", "3", "4"], ["1", "2"], ["0", "1", "4"]):  # counted from 1, perhaps from 1, too many
        with pytest.raises(ValueError, match="fit no class"):
            match_classes(found, CLASSES, allow_missing=True)


def test_a_model_without_class_names_takes_numbers_and_nothing_else() -> None:
    assert match_classes(["0", "1", "2"], (), num_classes=3).indices == {"0": 0, "1": 1, "2": 2}
    with pytest.raises(ValueError, match="names no classes"):
        match_classes(["cat", "dog"], (), num_classes=2)
    imagenet = match_classes(["n01443537"], (), num_classes=1000, allow_missing=True)
    assert imagenet.indices == {"n01443537": 1}
    assert "ImageNet" in imagenet.note


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not there"):
        ClassFolder(tmp_path / "nowhere")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="no images in class folders"):
        ClassFolder(tmp_path)


def test_val_is_taken_where_the_folder_holds_splits(tmp_path: Path) -> None:
    make_folder(tmp_path / "splits" / "val")
    make_folder(tmp_path / "splits" / "train")
    make_folder(tmp_path / "classes", ("cat", "val"))
    assert validation_root(tmp_path / "splits") == tmp_path / "splits" / "val"
    assert validation_root(tmp_path / "classes") == tmp_path / "classes"


def test_a_split_is_reproducible_and_survives_new_images(tmp_path: Path) -> None:
    def sides(folder: ClassFolder, seed: int = 0) -> dict[str, bool]:
        train, val = split_folder(folder, 0.25, seed)
        assert sorted(train + val) == list(range(len(folder)))
        names = [path.relative_to(folder.root).as_posix() for path in folder.paths]
        return {names[index]: True for index in val} | {names[index]: False for index in train}

    first = sides(ClassFolder(make_folder(tmp_path / "a", images=60)))
    assert first == sides(ClassFolder(make_folder(tmp_path / "b", images=60)))  # wherever it lies
    assert first != sides(ClassFolder(tmp_path / "a"), seed=1)
    for name in CLASSES:
        assert 6 <= sum(first[f"{name}/{number}.png"] for number in range(60)) <= 24
        for number in range(60, 70):
            Image.new("RGB", (8, 8)).save(tmp_path / "a" / name / f"{number}.png")
    grown = sides(ClassFolder(tmp_path / "a"))
    assert {path: grown[path] for path in first} == first


def test_small_classes_are_on_both_sides_of_a_split(tmp_path: Path) -> None:
    folder = ClassFolder(make_folder(tmp_path, images=2))
    for seed in range(20):
        train, val = split_folder(folder, 0.1, seed)
        assert {folder.labels[index] for index in train} == {folder.labels[index] for index in val} == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="share"):
        split_folder(folder, 1.0)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_every_image_once_and_in_order(tmp_path: Path, workers: int) -> None:
    folder = ClassFolder(make_folder(tmp_path, images=3))
    batches = list(evaluation_batches(folder, PLAIN, batch_size=5, workers=workers))
    assert [len(batch.images) for batch in batches] == [5, 5, 2]
    assert [index for batch in batches for index in batch.ids] == list(range(12))
    assert torch.equal(torch.cat([batch.targets for batch in batches]), torch.tensor(folder.labels))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_ends_the_batches_with_its_name(tmp_path: Path, workers: int) -> None:
    make_folder(tmp_path)
    broken = tmp_path / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(ImageError) as caught:
        list(evaluation_batches(ClassFolder(tmp_path), PLAIN, batch_size=3, workers=workers))
    assert str(caught.value).startswith(f"{broken}: ")
    assert "\n" not in str(caught.value)
