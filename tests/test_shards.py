"""Tar shards: the same samples as the class folder; built faults are named."""

import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from davit.data.folder import ClassFolder
from davit.data.images import find_images
from davit.data.loader import StepSampler, TrainSamples, train_loader
from davit.data.ranges import ShardError
from davit.data.shard_index import INDEX, index_json, read_index
from davit.data.shard_writer import write_shards
from davit.data.shards import Shards
from davit.data.transforms import Augmentation, TrainTransform
from davit.decoding import ImageError
from davit.preprocessing import Preprocessing
from davit.train.build import build_images
from runs import tiny_recipe
from shard_samples import assert_same, shards_of


def test_shards_hold_what_the_folder_holds_in_its_order(folder: Path, shards: Path) -> None:
    for part in ("train", "val"):
        assert_same(Shards(shards, part), ClassFolder(folder / part))
    assert len(list((shards / "train").glob("*.tar"))) > 1
    assert all(path.stat().st_size <= 2 * 10_240 for path in shards.rglob("*.tar"))  # tarfile pads to 10,240


def test_shards_are_in_the_webdataset_format(folder: Path, shards: Path) -> None:
    """Read as webdataset reads: members in turn, grouped by the path up to the first dot of the last part."""
    original = ClassFolder(folder / "train")
    content = {original.encoded(index): label for index, label in enumerate(original.labels)}
    seen: dict[bytes, int] = {}
    keys = []
    for tar in sorted((shards / "train").glob("*.tar")):
        with tarfile.open(tar) as opened:
            members = opened.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                key, ending = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", image.name).groups()
                assert label.name == f"{key}.cls"
                assert ending in ("png", "jpg")
                keys.append(key)
                seen[opened.extractfile(image).read()] = int(opened.extractfile(label).read())
    assert seen == content
    assert len(set(keys)) == len(keys) == len(original)
    assert [seen[data] for data in seen] != sorted(seen.values())  # shuffled, for readers that stream


def test_the_same_folder_gives_the_same_bytes_and_nothing_is_overwritten(folder: Path, shards: Path) -> None:
    again = folder.parent / "again"
    write_shards(folder, again, 10_000)
    for path in sorted(path for path in shards.rglob("*") if path.is_file()):
        assert path.read_bytes() == (again / path.relative_to(shards)).read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        write_shards(folder, shards, 10_000)


def test_a_failed_write_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(10))

    def full(_: ClassFolder, index: int) -> bytes:
        if next(calls) == 5:
            raise OSError(28, "No space left on device")
        return b"x" * 100

    monkeypatch.setattr(ClassFolder, "encoded", full)
    with pytest.raises(OSError, match="No space"):
        write_shards(folder, folder.parent / "out", 10_000)
    assert [path.name for path in folder.parent.iterdir()] == ["data"]


def test_training_sees_the_same_batches_with_any_workers_and_on_a_restart(folder: Path, shards: Path) -> None:
    transform = TrainTransform(Augmentation(), Preprocessing.imagenet(16))

    def batches(images: object, steps: range, workers: int) -> list[torch.Tensor]:
        sampler = StepSampler(len(images), 5, 0, steps)
        return [batch.images for batch in train_loader(TrainSamples(images, transform, 0), sampler, workers)]

    expected = batches(ClassFolder(folder / "train"), range(12), 0)
    for workers in (0, 2):
        found = batches(Shards(shards, "train"), range(7, 12), workers)
        assert all(torch.equal(a, b) for a, b in zip(found, expected[7:], strict=True))


def test_a_recipe_finds_shards_and_splits_them_as_the_folder(folder: Path, shards: Path) -> None:
    data = tiny_recipe(data__source="folder", data__root=str(shards), data__channels="3").data
    images = build_images(data, 0)
    assert (len(images.train), len(images.validation)) == (27, 6)
    assert images.train.classes == images.validation.classes == ("blue", "green", "red")

    write_shards(folder / "train", folder.parent / "whole", 10_000)
    sides = []
    for root in (folder / "train", folder.parent / "whole"):
        data = tiny_recipe(data__source="folder", data__root=str(root), data__channels="3").data
        images = build_images(data, 3)
        sides.append((images.train.indices, images.validation.indices))
    assert sides[0] == sides[1]


def test_classes_are_matched_by_name(shards: Path) -> None:
    own = Shards(shards, "val")
    turned = Shards(shards, "val", ("red", "grey", "blue", "green"), allow_missing=True)
    assert [turned.classes[label] for label in turned.labels] == [own.classes[label] for label in own.labels]
    assert turned.missing == ("grey",)
    with pytest.raises(ValueError, match="grey"):
        Shards(shards, "val", ("red", "grey", "blue", "green"))
    with pytest.raises(ValueError, match="'blue'"):
        Shards(shards, "val", ("red", "green"), allow_missing=True)


@pytest.mark.parametrize("harm", ["missing", "cut", "empty", "longer"])
def test_a_harmed_shard_is_named_before_the_first_sample(shards: Path, harm: str) -> None:
    tar = shards / "train" / "00001.tar"
    data = tar.read_bytes()
    tar.unlink()
    if harm != "missing":
        tar.write_bytes({"cut": data[:-700], "empty": b"", "longer": data + b"x"}[harm])
    with pytest.raises(ShardError, match=r"00001\.tar"):
        Shards(shards, "train")
    assert len(Shards(shards, "val")) == 6


def test_a_shard_with_another_content_is_no_bad_image(shards: Path) -> None:
    """Bad images are replaced in training; a wrong shard must not be."""
    images = Shards(shards, "val")
    tar = shards_of(images)[0]
    path = shards / "val" / tar
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ShardError, match=f"{tar} is damaged"):
        images[0]
    path.write_bytes(b"")
    with pytest.raises(ShardError, match=f"{tar} is cut short"):
        images[0]


def test_a_bad_image_in_a_shard_is_named(folder: Path) -> None:
    (folder / "val" / "red" / "1.png").write_bytes(b"no picture")
    write_shards(folder, folder.parent / "bad", 10_000)
    images = Shards(folder.parent / "bad", "val")
    with pytest.raises(ImageError, match=r"val/0000\d\.tar: red/1\.png: is no picture"):
        images[5]


@pytest.mark.parametrize("position", range(0, 1500, 97))
def test_a_flipped_bit_in_an_index_is_found(shards: Path, position: int) -> None:
    for name in ("val.samples", "val.names.gz"):
        path = shards / name
        data = bytearray(path.read_bytes())
        data[position % len(data)] ^= 4
        path.write_bytes(data)
        with pytest.raises(ShardError, match=name):
            Shards(shards, "val").names()
        data[position % len(data)] ^= 4
        path.write_bytes(data)


def test_an_index_cannot_lead_outside_its_folder(shards: Path) -> None:
    text = (shards / INDEX).read_text()
    for file in ("../secret.tar", "/etc/passwd"):
        (shards / INDEX).write_text(text.replace("val/00000.tar", file))
        with pytest.raises(ShardError, match="no path under"):
            find_images(shards)
    for other in ("", "[]", "{}", '{"format": "davit-shards-1", "parts": {}}', text.replace("classes", "names", 1)):
        (shards / INDEX).write_text(other)
        with pytest.raises(ShardError, match=r"index\.json"):
            find_images(shards)


def test_an_index_of_a_million_samples_is_small(tmp_path: Path) -> None:
    from davit.data.ranges import open_store
    from davit.data.shard_index import SAMPLE, StoredFile, part_files, read_samples

    count = 1_281_167
    samples = np.zeros(count, SAMPLE)
    samples["shard"], samples["label"] = np.arange(count) // 2400, np.arange(count) % 1000
    samples["block"], samples["size"] = 1 + np.arange(count) % 2400 * 200, 100_000
    tars = [StoredFile(file=f"train/{i:05d}.tar", size=1 << 28, sha256="0" * 64) for i in range(534)]
    names = [f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(count)]
    part, files = part_files("train", [str(i) for i in range(1000)], tars, samples, names, 0)
    for file, data in (files | {INDEX: index_json({"train": part})}).items():
        (tmp_path / file).write_bytes(data)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 25e6
    store = open_store(tmp_path)
    found = read_samples(store, read_index(store)["train"])
    assert np.array_equal(found, samples)
