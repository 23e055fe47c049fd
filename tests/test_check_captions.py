"""`data check` and `data show` on captions: seeded faults are found, clean data gives no finding."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from davit.cli import main
from davit.data.check_captions import check_captions, is_captions
from runs import colour_folder


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """24 pictures of noise, each with two captions of its own."""
    root = tmp_path / "clean"
    folder = colour_folder(root / "images")
    lines = ["file,caption"]
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        name = f"{path.parent.name}/{path.name}"
        lines += [f"{name},a {path.parent.name} picture called {number}", f"{name},number {number} of all"]
    (root / "captions.csv").write_text("\n".join(lines), encoding="utf-8")
    return root


def add(root: Path, *lines: str) -> None:
    with (root / "captions.csv").open("a", encoding="utf-8") as file:
        file.write("".join(f"\n{line}" for line in lines))


def kinds(root: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in check_captions(root).findings:
        found.setdefault(f"{finding.level} {finding.kind}", []).append(f"{finding.file}: {finding.message}")
    return found


def test_clean_captions_give_no_finding(clean: Path, tmp_path: Path) -> None:
    report = check_captions(clean)
    assert report.findings == ()
    assert report.images == {"all": 24}
    assert main(["data", "shard", str(clean), str(tmp_path / "shards"), "--captions", "--size", "10KB"]) == 0
    assert check_captions(tmp_path / "shards").findings == ()
    assert main(["data", "check", str(tmp_path / "shards")]) == 0


def test_seeded_faults_are_found(clean: Path) -> None:
    (clean / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    Image.new("RGB", (2, 30)).save(clean / "images" / "tiny.png")
    (clean / "images" / "copy.png").write_bytes((clean / "images" / "red" / "0.png").read_bytes())
    add(clean, "broken.png,one", "tiny.png,two", "copy.png,three", "red/1.png,")
    add(clean, "red/2.png,twice", "red/2.png,twice", f"red/3.png,{'very ' * 90}long")
    add(
        clean,
        *(
            f"{colour}/{i}.png,Image may be subject to copyright"
            for colour in ("red", "blue", "green")
            for i in range(8)
        ),
    )
    found = kinds(clean)
    assert any("broken.png" in text for kind, texts in found.items() if kind.startswith("error") for text in texts)
    assert "tiny.png" in found["warning tiny"][0]
    assert any("copy.png" in text for texts in found.values() for text in texts)
    assert "red/1.png" in found["warning no-caption"][0]
    assert "red/2.png" in found["warning repeated-caption"][0]
    assert "red/3.png" in found["note long-caption"][0]
    assert "copyright" in found["warning common-caption"][0]


def test_the_same_picture_on_both_sides_is_an_error(clean: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        folder = tmp_path / "both" / part
        folder.mkdir(parents=True)
        for number in range(3):
            shared = number == 0
            pixels = np.full((20, 20, 3), 7, np.uint8) if shared else rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{part}{number}.png")
            (folder / f"{part}{number}.txt").write_text(f"picture {number} of {part}", encoding="utf-8")
    assert is_captions(tmp_path / "both")
    assert any(kind.startswith("error") and "0.png" in texts[0] for kind, texts in kinds(tmp_path / "both").items())


def test_changed_shards_are_named(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "shard", str(clean), str(tmp_path / "shards"), "--captions", "--size", "10KB"]) == 0
    tar = next((tmp_path / "shards" / "all").glob("*.tar"))
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path / "shards"), "--json"]) == 1
    assert "changed-shard" in json.loads(capsys.readouterr().out)["kinds"]


def test_the_commands_know_captions(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(clean / "captions.csv")]) == 0
    assert "24 images in all" in capsys.readouterr().out
    sheet = tmp_path / "sheet.png"
    assert main(["data", "show", str(clean), "--out", str(sheet), "--images", "3", "--draws", "2"]) == 0
    assert Image.open(sheet).size[1] > 3 * 168
    assert not is_captions(clean / "images")
    (clean / "images" / "red" / "1.txt").write_text("a red one")
    assert is_captions(clean / "images")
    add(clean, "gone.png,not there")
    assert main(["data", "check", str(clean)]) == 2
    assert "gone.png" in capsys.readouterr().err
