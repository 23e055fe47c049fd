"""`check_masks`: every seeded fault is found and its file or class named, and clean data gives no finding."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from davit.class_names import ADE20K
from davit.cli import main
from davit.data.check_masks import check_masks
from davit.data.findings import CheckReport
from davit.data.masks import MaskFolder
from davit.decoding import ImageError
from faulty_masks import ALSO, FAULTS, in_colours, mask, noise, patch, relabel, rotated, write_masks

LEARNABLE = {"scaled-labels", "nothing-counts", "unlearnt-class", "similar-classes", "leak", "two-labels"}


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    write_masks(tmp_path / "data")
    return tmp_path / "data"


def kinds(report: CheckReport) -> set[tuple[str, str]]:
    return {(found.kind, found.level) for found in report.findings}


@pytest.mark.parametrize("workers", [0, 2])
def test_clean_data_gives_no_finding(clean: Path, workers: int) -> None:
    seen: list[int] = []
    report = check_masks(clean, workers=workers, started=seen.append, progress=seen.append)
    assert report.findings == ()
    assert report.images == {"train": 8, "val": 4}
    assert seen == [24] + [1] * 24
    assert check_masks(clean, decode=False).findings == ()


def test_clean_ade20k_gives_no_finding(clean: Path, tmp_path: Path) -> None:
    """There 0 is no class, and classes are 1 to 150."""
    root = tmp_path / "ade"
    for part, count in (("training", 6), ("validation", 3)):
        for kind in ("images", "annotations"):
            (root / kind / part).mkdir(parents=True)
        for number in range(count):
            seed = number + 50 * (part == "training")
            Image.fromarray(noise(seed, 80, 60)).save(root / "images" / part / f"ADE_{part}_{number}.jpg")
            labels = np.concatenate([np.arange(151), np.random.default_rng(seed).integers(1, 151, 80 * 60 - 151)])
            Image.fromarray(labels.reshape(60, 80).astype(np.uint8)).save(
                root / "annotations" / part / f"ADE_{part}_{number}.png"
            )
    assert check_masks(root).findings == ()
    lines = [f"{n}\t0.1\t7\t3\t{name}, also {n}\n" for n, name in enumerate(ADE20K, 1)]
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + "".join(lines))
    assert check_masks(root).findings == ()


@pytest.mark.parametrize("fault", FAULTS)
def test_each_seeded_fault_is_found_alone_and_named(clean: Path, fault: str) -> None:
    level, change, named = FAULTS[fault]
    change(clean)
    report = check_masks(clean)
    kind = fault.split()[0]
    assert (kind, level) in kinds(report)
    assert {found for found, _ in kinds(report)} - ALSO.get(fault, set()) == {kind}
    assert any(named in f"{found.file}: {found.message}" for found in report.findings if found.kind == kind)


def test_faults_of_several_files_at_once_are_all_found(clean: Path) -> None:
    mask(clean, 0).unlink()
    in_colours(clean)
    for name, change in (("unknown-label", relabel(lambda x: patch(x, 9), 1)), ("damaged", FAULTS["damaged"][1])):
        change(clean)
        assert name in {kind for kind, _ in kinds(check_masks(clean))}
    assert {kind for kind, level in kinds(check_masks(clean, workers=2)) if level == "error"} == {
        "no-mask",
        "colour-mask",
        "unknown-label",
        "damaged",
    }


@pytest.mark.parametrize("fault", [name for name in FAULTS if FAULTS[name][0] == "error" and name not in LEARNABLE])
def test_whatever_training_refuses_is_an_error_here(clean: Path, fault: str) -> None:
    """The other way round, an error may be one that only spoils what is learnt."""
    FAULTS[fault][1](clean)

    def train() -> None:
        for part in ("train", "val"):
            folder = MaskFolder(clean, part)
            assert all(len(folder[index]) == 2 for index in range(len(folder)))

    with pytest.raises((ValueError, ImageError)):
        train()


def test_headers_alone_tell_sizes_and_colours(clean: Path) -> None:
    rotated(clean)
    in_colours(clean)
    FAULTS["unknown-label"][1](clean)
    assert {kind for kind, _ in kinds(check_masks(clean, decode=False))} == {"size-mismatch", "colour-mask"}


def test_labels_may_be_ignored_and_named_elsewhere(clean: Path, tmp_path: Path) -> None:
    (clean / "classes.txt").rename(tmp_path / "names.txt")
    relabel(lambda x: patch(x, 11, 11), 5)(clean)
    assert {kind for kind, _ in kinds(check_masks(clean))} == {"no-class-list", "labels"}
    report = check_masks(clean, class_list=tmp_path / "names.txt")
    assert {kind for kind, _ in kinds(report)} == {"unknown-label"}
    assert check_masks(clean, class_list=tmp_path / "names.txt", ignore=(11,)).findings == ()


def test_the_verb_knows_masks(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "check", str(clean), "--workers", "0"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == {"train": 8, "val": 4}
    FAULTS["unknown-label"][1](clean)
    assert main([*words, "--ignore", "9"]) == 1
    out = capsys.readouterr().out
    assert "error: unknown-label, 1 found" in out
    assert "17 in 1 pixels" in out
    assert "9 in" not in out
    assert main([*words, "--ignore", "9", "17"]) == 0
    assert main(["data", "check", str(clean / "images"), "--class-list", str(clean / "classes.txt")]) == 2
    assert "--class-list and --ignore are for index masks" in capsys.readouterr().err
