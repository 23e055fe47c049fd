"""Tars of others, indexed by scanning: faults are named or skipped and counted."""

import io
import json
import random
import re
import tarfile
from pathlib import Path

import pytest

from davit.data.ranges import ShardError
from davit.data.shard_index import INDEX, index_json
from davit.data.shard_scan import scan_shards
from davit.data.shards import Shards
from odd_pictures import encode, scene


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
