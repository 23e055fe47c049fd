"""Losses that every version must repeat, and a resume folder that every version must read.

`python tests/test_golden.py [TASK...]` writes them anew; do that only for a change that is to change training, and
say so in the changelog. Losses are compared to 1e-4, for processors round differently; on one machine two runs are
equal to the bit. Those of detection may part further after some steps, where a rounding flips a choice of boxes.
"""

import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from davit.models.config import DaViTConfig
from davit.train.checkpoint import latest_point
from davit.train.recipe import Recipe
from runs import make_trainer, tiny_dense_recipe, tiny_recipe

GOLDEN = Path(__file__).parent / "golden"
STEPS, SAVED = 100, 60
DENSE, DENSE_STEPS, ALIKE = ("digits.detection", "digits.retinanet", "digits.segmentation"), 20, 5
SMALL = DaViTConfig(
    in_channels=1, widths=(8, 8, 8, 8), depths=(1, 1, 1, 1), head_width=8, mlp_ratio=2, window=3, drop_path=0.1
)


def recipe() -> Recipe:
    given = tiny_recipe(data__batch_size="32", schedule__epochs="3", task__mixup="0.8", task__cutmix="1.0")
    return replace(given, model=replace(given.model, backbone=SMALL))


def dense_losses(name: str, folder: Path) -> list[float]:
    return losses(folder, last=DENSE_STEPS, given=tiny_dense_recipe(name, schedule__epochs="4"))


def losses(folder: Path, first: int = 0, last: int = STEPS, given: Recipe | None = None) -> list[float]:
    """Train from what is in the folder, note each step's loss."""
    trainer = make_trainer(given or recipe(), folder)
    if point := latest_point(folder):
        trainer.resume(point)
    assert trainer.first_step == first
    trainer.total, seen, add = last, [], type(trainer.window).add

    def noted(window, loss, images):
        seen.append(loss)
        add(window, loss, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(trainer.window), "add", noted)
        trainer.run()
    return seen


def test_a_hundred_losses_repeat(tmp_path):
    first, second = losses(tmp_path / "first"), losses(tmp_path / "second")
    assert first == second
    assert first == pytest.approx(json.loads((GOLDEN / "digits.json").read_text()), rel=1e-4)


def test_an_older_resume_folder_goes_on(tmp_path):
    """Written by 0.1.0."""
    (tmp_path / "run").mkdir()
    shutil.copytree(GOLDEN / f"step-{SAVED:08d}", tmp_path / "run" / f"step-{SAVED:08d}")
    resumed = losses(tmp_path / "run", first=SAVED)
    assert resumed == pytest.approx(json.loads((GOLDEN / "digits.json").read_text())[SAVED:], rel=1e-4)


@pytest.mark.parametrize("name", DENSE)
def test_losses_of_detection_and_segmentation_repeat(tmp_path, name):
    first, second = dense_losses(name, tmp_path / "first"), dense_losses(name, tmp_path / "second")
    assert first == second
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    assert first[:ALIKE] == pytest.approx(golden[:ALIKE], rel=1e-4)
    assert first == pytest.approx(golden, rel=1e-2)


def write_digits(folder: Path) -> None:
    (GOLDEN / "digits.json").write_text(json.dumps(losses(folder / "whole"), indent=0) + "\n")
    losses(folder / "part", last=SAVED)
    shutil.rmtree(GOLDEN / f"step-{SAVED:08d}", ignore_errors=True)
    shutil.copytree(folder / "part" / f"step-{SAVED:08d}", GOLDEN / f"step-{SAVED:08d}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        for task in sys.argv[1:] or ("digits", *DENSE):
            if task == "digits":
                write_digits(Path(place))
            else:
                found = dense_losses(task, Path(place) / task)
                (GOLDEN / f"{task}.json").write_text(json.dumps(found, indent=0) + "\n")
