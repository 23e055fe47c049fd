"""Captions in tar shards: the pairs of the table; others' tar files; what is wrong is named."""

import functools
import io
import itertools
import json
import os
import pickle
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from davit.cli import main
from davit.data import caption_index
from davit.data.caption_files import CaptionFiles, find_captions
from davit.data.caption_shards import CaptionShards
from davit.data.captions import Pairs
from davit.data.loader import StepSampler, TrainSamples, train_loader
from davit.data.permutation import Permutation
from davit.data.ranges import ShardError
from davit.data.transforms import Augmentation, TrainTransform
from davit.preprocessing import Preprocessing
from davit.train.run import run
from runs import colour_folder, tiny_dense_recipe


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """24 pictures with one to three captions; the reds are a class."""
    folder = colour_folder(tmp_path / "source" / "images")
    lines = []
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        name = f"{path.parent.name}/{path.name}"
        for caption in range(1 + number % 3):
            label = "red" if "red" in name else ""
            lines.append(f"{name},Nr. {number}: a {path.parent.name} öne  of {caption},{label}")
    (tmp_path / "source" / "captions.csv").write_text("\n".join(["file,caption,label", *lines]), encoding="utf-8")
    return tmp_path / "source"


@pytest.fixture
def shards(table: Path) -> Path:
    assert main(["data", "shard", str(table), str(table.parent / "shards"), "--captions", "--size", "10KB"]) == 0
    return table.parent / "shards"


def assert_same(shards: CaptionShards, files: CaptionFiles) -> None:
    """The same pictures and captions in the same order, and the same of them belong together."""
    assert len(shards) == len(files)
    labels = []
    for index in range(len(files)):
        (image, caption), (wanted, told) = shards[index], files[index]
        assert np.array_equal(np.asarray(image), np.asarray(wanted))
        assert caption.text == " ".join(told.text.split()) == shards.caption(index)
        labels.append((caption.label, caption.image, told.label, told.image))
    for ours, theirs in ((0, 2), (1, 3)):
        pairs = {(row[ours], row[theirs]) for row in labels}
        assert len(pairs) == len({row[ours] for row in labels}) == len({row[theirs] for row in labels})


def test_shards_hold_the_pairs_of_the_table_in_its_order(table: Path, shards: Path) -> None:
    assert len(list((shards / "all").glob("*.tar"))) > 2
    assert_same(CaptionShards(shards, "all"), find_captions(table))


def test_large_indices_are_mapped_and_travel(table: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_index, "VERIFIED", 100)
    found = CaptionShards(shards, "all")
    assert isinstance(found._samples, np.memmap)
    again = pickle.loads(pickle.dumps(found))
    assert len(pickle.dumps(found)) < 30_000
    assert_same(again, find_captions(table))


@pytest.fixture
def address(shards: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def send_head(self) -> io.BytesIO | None:  # type: ignore[override]
            """Answer a range."""
            data = Path(self.translate_path(self.path)).read_bytes()
            first, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")
            end = int(last) + 1 if last else len(data)
            part = data[int(first) : end]
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
            self.end_headers()
            return io.BytesIO(part)

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(shards)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_pairs_come_over_http(table: Path, address: str) -> None:
    assert_same(CaptionShards(address, "all"), find_captions(table))


def test_workers_and_restarts_give_the_same_batches(shards: Path) -> None:
    preprocessing = Preprocessing(size=(16, 16))
    pairs = Pairs(CaptionShards(shards, "all"), 12)  # type: ignore[arg-type]
    samples = TrainSamples(pairs, TrainTransform(Augmentation(), preprocessing), seed=3)  # type: ignore[arg-type]

    def seen(workers: int, starts: tuple[int, ...]) -> list[tuple[torch.Tensor, ...]]:
        steps = [*starts, 12]
        return [
            (batch.images, batch.texts, batch.targets)
            for first, last in itertools.pairwise(steps)
            for batch in train_loader(samples, StepSampler(len(pairs), 8, 3, range(first, last)), workers)
        ]

    expected = seen(0, (0,))
    for workers, starts in ((2, (0,)), (0, (0, 5)), (1, (0, 3, 9))):
        for ours, theirs in zip(seen(workers, starts), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_run_learns_from_shards(table: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / "both" / part).mkdir(parents=True)
        rows = (table / "captions.csv").read_text(encoding="utf-8")
        (tmp_path / "both" / part / "captions.csv").write_text(rows, encoding="utf-8")
        (tmp_path / "both" / part / "images").symlink_to(table / "images")
    assert main(["data", "shard", str(tmp_path / "both"), str(tmp_path / "shards"), "--captions"]) == 0
    recipe = tiny_dense_recipe(
        "digits.contrastive", data__source="captions", data__root=str(tmp_path / "shards"), data__workers="0"
    )
    run(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("image_to_text_r1" in str(line) for line in lines)


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), colour).save(file, "PNG")
    return file.getvalue()


def test_tar_files_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As img2dataset writes them; what has no caption is counted and named."""
    one = tar_of(tmp_path / "0.tar", {
        "000.jpg": png("red"), "000.txt": b"a red one\n", "000.json": b"{}",
        "001.jpg": png("blue"), "001.json": b"{}",
        "002.png": png("blue"), "002.txt": b" \n",
    })  # fmt: skip
    two = tar_of(tmp_path / "1.tar", {
        "a/000.webp": png("green"), "a/000.txt": "grün\r\n\r\n  and green ".encode(), "a/000.cls": b"7",
        "a/001.jpg": png("green"), "a/001.txt": b"a third", "a/001.cls": b"7", "notes.txt.md": b"none",
    })  # fmt: skip
    assert main(["data", "index", "--captions", str(one), str(two), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["parts"]["all"] | {"bytes": 0} == {
        "images": 3, "captions": 4, "shards": 2, "bytes": 0
    }  # fmt: skip
    assert "1 pictures without a caption are left out: 001" in said.err
    assert "1 pictures with an empty caption are left out: 002" in said.err
    found = CaptionShards(tmp_path, "all")
    assert [found.caption(i) for i in range(4)] == ["a red one", "grün", "and green", "a third"]
    labels = [found[i][1].label for i in range(4)]
    assert labels[0] != labels[1] == labels[2] == labels[3]
    assert [found[i][1].image for i in range(4)] == [0, 1, 1, 2]
    assert found[1][0].getpixel((0, 0)) == (0, 128, 0)


def test_what_is_wrong_is_named(table: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar_of(tmp_path / "lone.tar", {"000.txt": b"a text"})
    tar_of(tmp_path / "two.tar", {"000.txt": b"a text", "000.jpg": png("red"), "000.png": png("red")})
    cut = tar_of(tmp_path / "cut.tar", {"000.jpg": png("red"), "000.txt": b"a text"})
    cut.write_bytes(cut.read_bytes()[:700])
    (tmp_path / "empty.tar").touch()
    for name, told in (("lone", "no image"), ("two", "2 images"), ("cut", "cut"), ("empty", "is empty")):
        assert main(["data", "index", "--captions", str(tmp_path / f"{name}.tar")]) == 2
        assert told in capsys.readouterr().err
    assert main(["data", "index", "--captions", str(tmp_path / "empty.tar"), "--classes", "names.txt"]) == 2
    assert "takes none" in capsys.readouterr().err
    assert main(["data", "shard", str(table), str(shards), "--captions"]) == 2
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(ValueError, match="part of"):
        CaptionShards(shards, "train")
    tar = next((shards / "all").glob("*.tar"))
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-512])
    with pytest.raises(ShardError, match="cut or replaced"):
        CaptionShards(shards, "all")
    tar.write_bytes(os.urandom(len(whole)))
    damaged = CaptionShards(shards, "all")
    with pytest.raises(ShardError, match="damaged, or not the file that was indexed"):
        list(map(damaged.__getitem__, range(len(damaged))))
    records = shards / "all.pairs"
    records.write_bytes(records.read_bytes()[::-1])
    with pytest.raises(ShardError, match="SHA-256"):
        CaptionShards(shards, "all")
    (shards / "index.json").write_text('{"format": "davit-shards-1", "parts": {}}')
    with pytest.raises(ShardError, match="--captions"):
        CaptionShards(shards, "all")


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 1000, 4097])
def test_an_order_without_memory_is_a_permutation(count: int) -> None:
    orders = [[Permutation(count, key)[place] for place in range(count)] for key in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(count))
    if count > 16:
        assert orders[0] != orders[1]
        moved = np.abs(np.array(orders[0]) - np.arange(count)).mean() / count
        assert 0.2 < moved < 0.47  # a third, for a random order
    with pytest.raises(IndexError):
        Permutation(count, 0)[count]


def test_neighbours_in_an_order_of_billions_are_far_apart() -> None:
    order = Permutation(1_500_000_000, 5)
    seen = np.array([order[place] for place in range(4000)])
    assert len(set(seen.tolist())) == 4000
    assert abs(np.corrcoef(seen[:-1], seen[1:])[0, 1]) < 0.08
    assert 0.45 < seen.mean() / 1_500_000_000 < 0.55


def test_large_sets_are_sampled_without_holding_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("davit.data.loader.LARGEST_SHUFFLED", 20)
    keys = [key for step in StepSampler(30, 8, 1, range(15)) for key in step]  # 4 epochs
    for epoch in range(4):
        assert sorted(index for e, index in keys if e == epoch) == list(range(30))
    assert [key for step in StepSampler(30, 8, 1, range(6, 15)) for key in step] == keys[48:]
    assert [index for e, index in keys if e == 0] != [index for e, index in keys if e == 1]
