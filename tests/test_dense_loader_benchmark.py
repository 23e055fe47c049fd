"""The measuring of loaders of COCO annotations and of index masks."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from davit.cli import main
from davit.data.scenes import Scenes

SMALL = {
    "masks": ["ade20k.upernet", "data.augmentation.crop=64", "data.augmentation.short=64", "data.batch_size=4"],
    "coco": ["coco.retinanet_1x", "data.augmentation.short_sides=64", "data.augmentation.crop_short_sides=64,80",
             "data.augmentation.longest=96", "data.augmentation.crop_sides=40,60", "data.batch_size=4"],
}  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Digit scenes in both layouts."""
    truth = Scenes("train", 8, "detection", size=64).ground_truth()
    for part in ("train", "val"):
        for name in (f"coco/{part}2017", f"masks/{part}", f"masks/{part}_masks", "coco/annotations"):
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
        scenes = Scenes("train", 8, "segmentation", size=64)
        for index, image in enumerate(truth["images"]):
            picture, classes = scenes[index]
            image["file_name"] = f"{index}.png"
            picture.save(tmp_path / f"coco/{part}2017/{index}.png")
            picture.save(tmp_path / f"masks/{part}/{index}.png")
            Image.fromarray(np.asarray(classes)).save(tmp_path / f"masks/{part}_masks/{index}.png")
        (tmp_path / f"coco/annotations/instances_{part}2017.json").write_text(json.dumps(truth))
    (tmp_path / "masks/classes.txt").write_text("\n".join(scenes.classes))
    return {kind: tmp_path / kind for kind in ("coco", "masks")}


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_stage_and_the_loader_are_timed(
    folders: dict[str, Path], kind: str, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(folders[kind]), *SMALL[kind], "--images", "16", "--workers", workers, "--json"]
    assert main(["benchmark", "data", *words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["images_per_second"]) == ["load", "augment", "collate"]
    assert sum(report["share"].values()) == pytest.approx(1, abs=1e-3)
    assert 0 < report["one_process"] <= min(report["images_per_second"].values())
    assert report["loader"]["images_per_second"] > 0
    assert (report["images"], report["broken"], report["loader"]["workers"]) == (16, 0, int(workers))


def test_broken_pictures_are_counted(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (folders["masks"] / "train" / "3.png").write_bytes(b"text")
    assert main(["benchmark", "data", str(folders["masks"]), *SMALL["masks"], "--images", "8", "--workers", "0"]) == 0
    assert "1 images could not be decoded" in capsys.readouterr().out


def test_built_in_scenes_are_timed_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "data", "digits.segmentation", "--images", "16", "--workers", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 16
