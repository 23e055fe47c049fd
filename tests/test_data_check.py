"""`davit data check`: every seeded fault is found and named, and clean data gives no finding."""

import hashlib
import os
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from davit.data.check import check_classification
from davit.data.findings import CheckReport
from davit.data.image_facts import measure
from davit.data.images import find_images
from davit.data.manifest import compare_manifest, manifest_lines
from davit.data.ranges import ShardError
from davit.data.shard_writer import write_shards
from odd_pictures import encode, png, scene

CLASSES = ("cat", "dog", "fish")


def photo(seed: int, width: int = 48, height: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Two splits, three classes, JPEG and PNG, of several sizes."""
    root = tmp_path / "data"
    seed = 0
    for part, count in (("train", 12), ("val", 4)):
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                seed += 1
                pixels = photo(seed, 40 + seed % 50, 40 + seed % 31)
                form, ending = (("JPEG", "jpg"), ("PNG", "png"))[number % 2]
                (root / part / name / f"{number}.{ending}").write_bytes(encode(pixels, form))
    return root


def kinds(report: CheckReport) -> set[tuple[str, str]]:
    return {(found.kind, found.level) for found in report.findings}


def found(report: CheckReport, kind: str) -> list[str]:
    return [f"{found.file}: {found.message}" for found in report.findings if found.kind == kind]


@pytest.mark.parametrize("workers", [0, 2])
def test_clean_data_gives_no_finding(clean: Path, workers: int) -> None:
    for root in (clean, clean / "train"):
        report = check_classification(root, workers=workers)
        assert report.findings == ()
    assert check_classification(clean).images == {"train": 36, "val": 12}
    write_shards(clean, clean.parent / "shards", 20_000)
    assert check_classification(clean.parent / "shards", workers=workers).findings == ()


def into(name: str, data: bytes) -> "dict[str, bytes]":
    return {name: data}


PHOTO, OTHER = photo(999), photo(7000)
DEEP = np.random.default_rng(0).integers(0, 65_536, (40, 60)).astype(np.uint16)
FILES: dict[str, tuple[str, dict[str, bytes]]] = {
    "empty-file": ("error", into("train/cat/x.jpg", b"")),
    "empty-file ": ("error", into("train/cat/x.jpg", bytes(500))),
    "not-an-image": ("error", into("train/cat/x.jpg", b"<!DOCTYPE html><h1>404</h1>")),
    "not-an-image ": ("error", into("val/dog/x.png", b"just text\n" * 40)),
    "damaged": ("error", into("train/cat/x.jpg", encode(PHOTO, "JPEG")[:700])),
    "damaged ": ("error", into("train/cat/x.png", encode(PHOTO, "PNG")[:-60])),
    "too-large": ("error", into("train/cat/x.png", png(30_000, 30_000))),
    "too-large ": ("error", into("train/cat/x.png", png(13_000, 13_000))),
    "wrong-extension": ("warning", into("train/cat/x.jpg", encode(PHOTO, "PNG"))),
    "tiny": ("warning", into("train/cat/x.png", encode(photo(1000, 1, 1), "PNG"))),
    "extreme-ratio": ("warning", into("train/cat/x.png", encode(photo(1000, 300, 12), "PNG"))),
    "size-outlier": ("warning", into("train/cat/x.jpg", encode(photo(1000, 600, 500), "JPEG"))),
    "nearly-blank": ("warning", into("train/cat/x.png", encode(np.full((60, 60, 3), 255, np.uint8), "PNG"))),
    "huge": ("warning", into("train/cat/x.png", encode(np.zeros((7100, 7100), np.uint8), "PNG"))),
    "animated": (
        "note",
        into("train/cat/x.gif", encode(PHOTO, "GIF", save_all=True, append_images=[Image.fromarray(photo(1001))])),
    ),
    "cmyk": ("note", into("train/cat/x.jpg", encode(Image.fromarray(PHOTO).convert("CMYK"), "JPEG"))),
    "deep-grey": ("note", into("train/cat/x.png", encode(DEEP, "PNG"))),
    "stray": ("warning", into("train/x.jpg", encode(PHOTO, "JPEG"))),
    "ignored": ("note", into("train/cat/notes.txt", b"note")),
    "hidden": ("note", into("train/cat/.x.jpg", encode(PHOTO, "JPEG"))),
    "unknown-class": ("error", into("val/bird/x.jpg", encode(PHOTO, "JPEG"))),
    "unscored-class": ("warning", into("train/bird/x.jpg", encode(PHOTO, "JPEG"))),
    "similar-classes": ("error", {"train/Cat/x.jpg": encode(PHOTO, "JPEG"), "val/Cat/y.jpg": encode(OTHER, "JPEG")}),
    "odd-class-name": ("warning", {"train/ b/x.jpg": encode(PHOTO, "JPEG"), "val/ b/y.jpg": encode(OTHER, "JPEG")}),
    "leak": ("error", {"train/cat/x.jpg": encode(PHOTO, "JPEG"), "val/cat/y.jpg": encode(PHOTO, "JPEG")}),
    "leak ": ("error", {"train/cat/x.bmp": encode(PHOTO, "BMP"), "val/cat/y.png": encode(PHOTO, "PNG")}),
    "two-labels": ("error", {"train/cat/x.jpg": encode(PHOTO, "JPEG"), "train/dog/y.jpg": encode(PHOTO, "JPEG")}),
    "duplicate": ("warning", {"train/cat/x.jpg": encode(PHOTO, "JPEG"), "train/cat/y.jpg": encode(PHOTO, "JPEG")}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FILES)
def test_each_seeded_fault_is_found_alone_and_its_file_named(clean: Path, fault: str) -> None:
    level, files = FILES[fault]
    for name, data in files.items():
        (clean / name).parent.mkdir(exist_ok=True)
        (clean / name).write_bytes(data)
    report = check_classification(clean)
    kind = fault.strip()
    also = {"huge": {("size-outlier", "warning"), ("nearly-blank", "warning")}, "tiny": set()}
    assert kinds(report) - also.get(kind, set()) == {(kind, level)}
    named = [name if "class" not in kind else Path(name).parent.name for name in files]
    assert any(Path(name).name in text for name in named for text in found(report, kind))


def test_empty_classes(clean: Path) -> None:
    (clean / "train" / "bird").mkdir()
    assert kinds(check_classification(clean)) == {("empty-class", "error")}
    shutil.rmtree(clean / "train" / "bird")
    (clean / "val" / "bird").mkdir()
    assert ("empty-class", "warning") in kinds(check_classification(clean))


def test_unreadable_files(clean: Path) -> None:
    (clean / "train" / "cat" / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(clean / "train" / "cat" / "pipe.txt")
    report = check_classification(clean)
    assert [Path(text.partition(":")[0]).name for text in found(report, "unreadable")] == ["gone.jpg"]
    if os.geteuid():  # root reads everything
        (clean / "train" / "cat" / "0.jpg").chmod(0)
        assert "Permission denied" in found(check_classification(clean), "unreadable")[0]


def test_pipes_are_not_waited_for(clean: Path) -> None:
    os.mkfifo(clean / "train" / "cat" / "pipe.jpg")
    (text,) = found(check_classification(clean), "unreadable")
    assert "pipe.jpg" in text
    assert "is not a regular file" in text


def test_all_faults_at_once_are_all_found(clean: Path) -> None:
    """None hides another, in any number of processes."""
    for number, (_, files) in enumerate(FILES.values()):
        for name, data in files.items():
            path = clean / name
            path = path.with_name(f"{number}-{path.name}" if not path.name.startswith(".") else path.name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    expected = {fault.strip() for fault in FILES}
    reports = [check_classification(clean, workers=workers) for workers in (0, 2)]
    assert {kind for kind, _ in kinds(reports[0])} >= expected - {"duplicate", "unscored-class", "unknown-class"}
    assert reports[0] == reports[1]


def test_without_decoding_bytes_and_headers_are_looked_at(clean: Path) -> None:
    (clean / "train" / "cat" / "x.jpg").write_bytes(encode(PHOTO, "JPEG")[:700])
    assert check_classification(clean, decode=False).findings == ()
    (clean / "val" / "cat" / "y.jpg").write_bytes(b"text")
    (clean / "val" / "cat" / "z.jpg").write_bytes((clean / "train" / "cat" / "0.jpg").read_bytes())
    assert kinds(check_classification(clean, decode=False)) == {("not-an-image", "error"), ("leak", "error")}


def test_shards_that_changed_are_named_and_bad_samples_in_them(clean: Path) -> None:
    (clean / "val" / "cat" / "x.jpg").write_bytes(b"text")
    write_shards(clean, clean.parent / "shards", 20_000)
    shards = clean.parent / "shards"
    report = check_classification(shards)
    assert kinds(report) == {("not-an-image", "error")}
    assert "cat/x.jpg" in report.findings[0].file
    tar = shards / "train" / "00000.tar"
    data = bytearray(tar.read_bytes())
    rng = random.Random(0)
    for _ in range(20):
        place, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        data[place] ^= bit
        tar.write_bytes(data)
        report = check_classification(shards)
        assert (report.findings[0].kind, report.findings[0].file) == ("changed-shard", str(tar))
        data[place] ^= bit
    tar.unlink()
    (shards / "val" / "00000.tar").write_bytes(b"")
    assert [found.kind for found in check_classification(shards).findings] == ["changed-shard", "missing-shard"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes_ends_the_check_with_one_line(clean: Path, workers: int) -> None:
    write_shards(clean, clean.parent / "shards", 1_000_000)
    images = find_images(clean.parent / "shards").open("val")
    (clean.parent / "shards" / "val" / "00000.tar").unlink()
    with pytest.raises(ShardError) as caught:
        list(measure(images, decode=True, workers=workers))
    assert "00000.tar: No such file" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_finds_every_flipped_bit_and_every_change_of_files(clean: Path) -> None:
    (clean / "odd\nname\\.txt").write_bytes(b"x")
    manifest = clean.parent / "hashes"
    manifest.write_bytes(b"".join(manifest_lines(clean)))
    assert compare_manifest(clean, manifest) == []
    rng = random.Random(0)
    files = sorted(path for path in clean.rglob("*") if path.is_file())
    for _ in range(200):
        path = rng.choice(files)
        good = path.read_bytes()
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        (finding,) = compare_manifest(clean, manifest)
        assert (finding.level, finding.kind) == ("error", "changed")
        assert path.name.split("\n")[0] in finding.file
        path.write_bytes(good)
    (clean / "train" / "cat" / "0.jpg").rename(clean / "train" / "cat" / "new.jpg")
    assert [(f.kind, Path(f.file).name) for f in compare_manifest(clean, manifest)] == [
        ("missing", "0.jpg"),
        ("not-in-manifest", "new.jpg"),
    ]
    manifest.write_bytes(b"no manifest\n")
    with pytest.raises(ValueError, match="line 1"):
        compare_manifest(clean, manifest)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="coreutils are not here")
def test_sha256sum_reads_the_manifest(clean: Path) -> None:
    (clean / "odd\nname\\.txt").write_bytes(b"x")
    manifest = clean.parent / "hashes"
    manifest.write_bytes(b"".join(manifest_lines(clean)))
    command = ["sha256sum", "--check", "--quiet", "--strict", str(manifest)]
    assert subprocess.run(command, cwd=clean, capture_output=True, check=False).returncode == 0
    line = manifest.read_bytes().splitlines()[-1].decode()
    digest, _, name = line.partition("  ")
    assert hashlib.sha256((clean / name).read_bytes()).hexdigest() == digest
    (clean / "val" / "cat" / "0.jpg").write_bytes(encode(scene(random.Random(0)), "JPEG"))
    assert subprocess.run(command, cwd=clean, capture_output=True, check=False).returncode == 1
