"""Tar shards: the same samples as the class folder, on this machine and over HTTP; built faults are named."""

import io
import json
import pickle
import random
import re
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch

from davit.data import ranges
from davit.data.folder import ClassFolder
from davit.data.images import find_images
from davit.data.loader import StepSampler, TrainSamples, train_loader
from davit.data.ranges import ShardError
from davit.data.shard_index import INDEX, index_json, read_index
from davit.data.shard_scan import scan_shards
from davit.data.shard_writer import write_shards
from davit.data.shards import Shards
from davit.data.transforms import Augmentation, TrainTransform
from davit.decoding import ImageError
from davit.preprocessing import Preprocessing
from davit.train.build import build_images
from odd_pictures import encode, scene
from runs import colour_folder, tiny_recipe


class Files(BaseHTTPRequestHandler):
    """Serves a folder with range requests, and misbehaves as its server is told."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are sent apart

    def do_GET(self) -> None:
        """Answer."""
        server = self.server
        server.connections.add(self.client_address)
        server.requests += 1
        if server.failing > 0:
            server.failing -= 1
            self._answer(503, b"busy")
        elif self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send_file(server.root / unquote(self.path).lstrip("/"))

    def _send_file(self, path: Path) -> None:
        if not path.is_file():
            self._answer(404, b"no")
            return
        data = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not wanted or self.server.whole_only:
            self._answer(200, data)
            return
        first, last = int(wanted[1]), int(wanted[2])
        piece = data[first : last + 1]
        if self.server.cutting:
            self.send_response(206)
            self.send_header("Content-Length", str(len(piece)))
            self.end_headers()
            self.wfile.write(piece[:10])
            self.close_connection = True
            return
        self._answer(206, piece, f"bytes {first}-{last}/{len(data)}")

    def _answer(self, status: int, body: bytes, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes with the file names that break formats; the last image of red is a JPEG in a deeper folder."""
    colour_folder(tmp_path / "data" / "train")
    colour_folder(tmp_path / "data" / "val", images=2)
    red = tmp_path / "data" / "train" / "red"
    (red / "deep").mkdir()
    (red / "deep" / "IMG.01.x.JPEG").write_bytes(encode(scene(random.Random(1)), "JPEG"))
    (red / "deep" / "IMG.01_x.png").write_bytes(encode(scene(random.Random(2)), "PNG"))
    (red / ("schöne 猫" + "x" * 120 + ".png")).write_bytes(encode(scene(random.Random(3)), "PNG"))
    return tmp_path / "data"


@pytest.fixture
def shards(folder: Path) -> Path:
    out = folder.parent / "shards"
    write_shards(folder, out, 10_000)
    return out


@pytest.fixture
def server(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setattr(ranges, "PAUSES", (0.0, 0.01, 0.01))
    monkeypatch.setattr(ranges, "TIMEOUT", 5.0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.daemon_threads = True
    server.root, server.failing, server.whole_only, server.cutting = shards, 0, False, False
    server.requests, server.connections = 0, set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def url(server: ThreadingHTTPServer, path: str = "") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def shards_of(images: Shards) -> list[str]:
    """File name of the shard of each sample."""
    return [re.search(r"\d+\.tar", images.name(index)).group() for index in range(len(images))]


def assert_same(images: Shards, original: ClassFolder) -> None:
    assert images.classes == original.classes
    assert len(images) == len(original)
    assert images.names() == original.names()
    for index in range(len(original)):
        (picture, label), (expected, its_label) = images[index], original[index]
        assert label == its_label
        assert picture.mode == expected.mode
        assert np.array_equal(picture, expected)
        assert images.encoded(index) == original.encoded(index)


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


def test_over_http_the_same_samples_over_one_connection(
    folder: Path, shards: Path, server: ThreadingHTTPServer
) -> None:
    images = Shards(url(server), "train")
    assert_same(images, ClassFolder(folder / "train"))
    assert len(server.connections) == 1
    assert find_images(url(server)).parts == ("train", "val")
    assert_same(pickle.loads(pickle.dumps(images)), ClassFolder(folder / "train"))
    moved = Shards(url(server, "/moved"), "train")
    assert moved.encoded(3) == images.encoded(3)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_no_connection(folder: Path, server: ThreadingHTTPServer, workers: int) -> None:
    images = Shards(url(server), "train")
    transform = TrainTransform(Augmentation(), Preprocessing.imagenet(16))
    sampler = StepSampler(len(images), 5, 0, range(6))
    loaded = [batch.images for batch in train_loader(TrainSamples(images, transform, 0), sampler, workers)]
    local = TrainSamples(ClassFolder(folder / "train"), transform, 0)
    expected = [batch.images for batch in train_loader(local, sampler, 0)]
    assert all(torch.equal(a, b) for a, b in zip(loaded, expected, strict=True))


def test_a_busy_server_is_asked_again_and_a_failing_one_named(server: ThreadingHTTPServer) -> None:
    images = Shards(url(server), "train")
    server.failing = 2
    assert images.encoded(0)
    server.failing = 100
    with pytest.raises(ShardError, match=rf"{url(server)}/train/0000\d\.tar: .*503.*tried 4 times"):
        images.encoded(0)
    server.failing = 0
    server.cutting = True
    with pytest.raises(ShardError, match=r"train/0000\d\.tar"):
        images.encoded(0)
    server.cutting, server.whole_only = False, True
    with pytest.raises(ShardError, match="range requests"):
        images.encoded(0)


def test_a_missing_or_replaced_shard_on_a_server(shards: Path, server: ThreadingHTTPServer) -> None:
    images = Shards(url(server), "val")
    tar = shards_of(images)[0]
    path = shards / "val" / tar
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(ShardError, match=f"{tar} has .* not the file indexed"):
        images.encoded(0)
    path.unlink()
    with pytest.raises(ShardError, match=f"{tar}: the server answers 404"):
        images.encoded(0)
    (shards / INDEX).unlink()
    with pytest.raises(ShardError, match=r"index\.json: the server answers 404"):
        find_images(url(server))


def test_a_silent_server_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(ranges, "TIMEOUT", 0.1)
    monkeypatch.setattr(ranges, "PAUSES", (0.0,))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ShardError, match=r"index\.json: timed out"):
            find_images(f"http://127.0.0.1:{silent.getsockname()[1]}")


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


def test_an_index_of_a_million_samples_is_small_and_quick(tmp_path: Path) -> None:
    import time

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
    started = time.process_time()
    store = open_store(tmp_path)
    found = read_samples(store, read_index(store)["train"])
    assert time.process_time() - started < 1.0
    assert np.array_equal(found, samples)


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


PICTURE = encode(scene(random.Random(0)), "PNG")


def pairs(*names: str) -> list[tuple[str, bytes]]:
    return [member for name in names for member in ((f"{name}.png", PICTURE), (f"{name}.cls", b"1"))]


FAULTS = {
    "member without partner": ([*pairs("a", "b"), ("c.png", PICTURE)], "x.tar: c has no .cls", 2),
    "class without image": ([("c.cls", b"0"), *pairs("a", "b")], "x.tar: c has no image", 2),
    "two images": ([("c.png", PICTURE), ("c.jpg", PICTURE), ("c.cls", b"0"), *pairs("a")], "c has 2 images", 1),
    "unknown class": ([*pairs("a"), ("c.png", PICTURE), ("c.cls", b"7")], "c.png is of the unknown class '7'", 1),
    "partners apart": ([("c.png", PICTURE), *pairs("a"), ("c.cls", b"0")], "x.tar: c has no .cls", 1),
}


def scan(tar: Path, **options: object) -> tuple[object, dict[str, bytes], list[str]]:
    return scan_shards("all", [tar], tar.parent, ("zero", "one"), **options)


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_members_are_named_or_skipped_and_counted(tmp_path: Path, fault: str) -> None:
    members, message, good = FAULTS[fault]
    tar = tar_of(tmp_path / "x.tar", members)
    with pytest.raises(ShardError, match=re.escape(message)):
        scan(tar)
    part, files, faults = scan(tar, skip=True)
    assert (part.count, part.skipped) == (good, len(faults))
    for file, data in (files | {INDEX: index_json({"all": part})}).items():
        (tmp_path / file).write_bytes(data)
    images = Shards(tmp_path, "all")
    assert (len(images), images.skipped) == (good, len(faults))
    assert all(images.encoded(index) == PICTURE for index in range(good))
    assert set(images.labels) == {1}


def test_every_cut_of_a_tar_is_found(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "x.tar", pairs("a", "b", "c")).read_bytes()
    content = whole.rstrip(b"\0")
    tar = tmp_path / "cut.tar"
    for length in [0, 1, 100, *range(512, len(content), 331)]:
        tar.write_bytes(whole[:length])
        with pytest.raises(ShardError, match=r"cut\.tar"):
            scan(tar)
    tar.write_bytes(whole[: whole.index(b"b.cls")])
    part, _, faults = scan(tar, skip=True)
    assert part.count == 1
    assert faults


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "x.tar", pairs("a", "b", "c"))
    data = bytearray(tar.read_bytes())
    data[data.index(b"b.png")] ^= 1  # the checksum of this header is wrong now
    tar.write_bytes(data)
    with pytest.raises(ShardError, match=r"x\.tar is cut or damaged at byte"):
        scan(tar)
    for junk in (b"no tar file at all" * 100, bytes(10_240)):
        tar.write_bytes(junk)
        with pytest.raises(ShardError, match=r"x\.tar"):
            scan(tar)


def test_classes_of_foreign_shards_without_names(tmp_path: Path) -> None:
    numbers = tar_of(tmp_path / "numbers.tar", [("a.png", PICTURE), ("a.cls", b"2"), *pairs("b")])
    part, _, _ = scan_shards("all", [numbers], tmp_path)
    assert part.classes == ("0", "1", "2")
    texts = tar_of(
        tmp_path / "texts.tar", [("a.png", PICTURE), ("a.cls", b"dog\n"), ("b.png", PICTURE), ("b.cls", b"cat")]
    )
    part, _, _ = scan_shards("all", [texts], tmp_path)
    assert part.classes == ("cat", "dog")
    assert json.loads(index_json({"all": part}))["parts"]["all"]["shards"][0]["file"] == "texts.tar"
