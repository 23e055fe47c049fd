"""Learning-rate sweeps: what is tried, what is told, and that neither divergence nor a stop loses anything."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from davit.cli import main
from davit.recipes import make_recipe
from davit.records import differences, to_json
from davit.train.recipe import Recipe
from davit.train.schedule import rate_at
from davit.train.stop import TrainingStoppedError
from davit.train.sweep import SweepPoint, draw, shortened, suggest, sweep
from davit.train.trainer import Trainer
from runs import tiny_recipe

RATES = [1e3, 4e-3, 1e-4]  # the first diverges


def small() -> Recipe:
    return tiny_recipe(data__batch_size="128", schedule__warmup_epochs="0.5")


@pytest.fixture(scope="module", name="swept")
def make_sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, sweep(small(), RATES, folder, 1)


def test_rates_are_tried_from_low_to_high_and_divergence_is_told(swept):
    folder, found = swept
    assert [point.rate for point in found.points] == sorted(RATES)
    low, middle, high = found.points
    assert low.validation_loss > middle.validation_loss > 0
    assert high.validation_loss is None
    assert "diverged" in high.note
    assert "NaN" in high.note or "no finite loss" in high.note
    assert found.suggested == 4e-3
    for point in (low, middle):
        metrics = json.loads((Path(point.folder) / "metrics.json").read_text())
        assert (point.validation_loss, point.top1) == (metrics["validation_loss"], metrics["top1"])
        recipe = json.loads((Path(point.folder) / "recipe.json").read_text())
        lines = differences(recipe, json.loads(json.dumps(to_json(shortened(small(), 4e-3, 1)))))
        assert [line.split(":")[0] for line in lines] == ([] if point is middle else ["optimizer.learning_rate"])
    assert json.loads((folder / "sweep.json").read_text()) == json.loads(json.dumps(found.to_json()))
    lines = found.lines()
    assert lines[2].endswith("<-")
    assert "diverged" in lines[3]
    assert lines[-1].startswith("suggested: optimizer.learning_rate=0.004, the lowest validation loss")


def test_nothing_is_tried_twice(swept, monkeypatch):
    folder, found = swept
    monkeypatch.setattr("davit.train.sweep.run", lambda *_: pytest.fail("trained again"))
    assert sweep(small(), RATES, folder, 1) == found
    assert sweep(small(), RATES[1:], folder, 1).points == found.points[:2]


def test_another_recipe_in_the_same_folder_is_refused(swept):
    folder, _ = swept
    with pytest.raises(ValueError, match=r"runtime\.seed: 5 instead of 0.*--fresh"):
        sweep(tiny_recipe(schedule__warmup_epochs="0.5", runtime__seed="5"), RATES, folder, 1)


def test_a_stopped_sweep_goes_on_to_the_same_result(swept, tmp_path, monkeypatch):
    step, steps = Trainer._step, []

    def counted(trainer, *arguments):
        steps.append(None)
        if len(steps) == 17:  # in the middle of the second run of 12
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", counted)
        with pytest.raises(TrainingStoppedError, match="run the same command"):
            sweep(small(), RATES, tmp_path, 1)
    assert len(steps) == 17
    again = sweep(small(), RATES, tmp_path, 1)
    for mine, theirs in zip(again.points, swept[1].points, strict=True):
        assert replace(mine, folder="") == replace(theirs, folder="")


def test_short_runs_are_the_recipe_in_small():
    recipe = make_recipe("finetune", init="weights.safetensors")
    for epochs in (1, 3, 30):
        short = shortened(recipe, 2e-3, epochs)
        assert short.optimizer.learning_rate == 2e-3
        assert short.schedule.total_epochs == epochs
        assert rate_at(short.schedule, 100 * epochs - 1, 100) == pytest.approx(recipe.schedule.floor, abs=1e-3)
        assert max(rate_at(short.schedule, step, 100) for step in range(100 * epochs)) > 0.84  # it warms up in time
        assert short.optimizer.frozen_epochs < epochs  # and the backbone learns
        assert short.runtime.evaluate_every >= epochs
        changed = {line.split(":")[0] for line in differences(to_json(short), to_json(recipe))}
        assert changed <= {
            "optimizer.learning_rate",
            "optimizer.frozen_epochs",
            "schedule.epochs",
            "schedule.warmup_epochs",
            "schedule.cooldown_epochs",
            "runtime.ema",
            "runtime.evaluate_every",
        }


def points(*losses: float | None) -> list[SweepPoint]:
    return [
        SweepPoint(rate=10.0 ** (index - 5), folder="", validation_loss=loss, training_loss=loss, top1=0.5)
        for index, loss in enumerate(losses)
    ]


@pytest.mark.parametrize(
    ("losses", "rate", "words"),
    [
        ((2.0, 1.0, 1.5), 1e-4, "the lowest validation loss, 1"),
        ((2.0, 1.005, 1.0, 1.5), 1e-4, "within 1% of the lowest validation loss, 1 at 0.001"),
        ((2.0, 1.5, 1.0), 1e-3, "try higher ones too, such as 0.003"),
        ((1.0, 1.5, None), 1e-5, "try lower ones too, such as 3.3e-06"),
        ((2.0, 1.0, None), 1e-4, "the lowest"),
        ((None, None), None, "every rate diverged: try lower ones, such as 1e-06"),
    ],
)
def test_what_is_suggested_and_why(losses, rate, words):
    suggested, reason = suggest(points(*losses))
    assert suggested == (None if rate is None else pytest.approx(rate))
    assert words in reason


def test_an_end_is_named_only_where_it_did_best():
    assert "try" not in suggest(points(2.0, 1.0, 1.5))[1]
    assert "try" not in suggest(points(2.0, 1.0, None))[1]
    assert "try" not in suggest(points(1.0))[1]


def test_the_plot_can_be_opened_and_shows_the_losses(swept, tmp_path, monkeypatch):
    _, found = swept
    draw(found, tmp_path / "sweep.png")
    pixels = np.asarray(Image.open(tmp_path / "sweep.png").convert("RGB")).astype(int)
    assert pixels.shape[0] > 300
    for colour in ((0x1F, 0x5F, 0xA8), (0xC2, 0x57, 0x1A)):  # validation and training
        assert (np.abs(pixels - colour).sum(-1) < 20).sum() > 50
    draw(replace(found, points=found.points[-1:], suggested=None), tmp_path / "diverged.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"install davit\[train\]"):
        draw(found, tmp_path / "sweep.png")


def test_a_missing_folder_is_no_divergence(tmp_path):
    with pytest.raises(ValueError, match="say where the images are"):
        sweep(make_recipe("finetune", "davit_pico"), [1e-3], tmp_path, 1)
    assert not list(tmp_path.rglob("diverged.json"))


def test_the_command_suggests_and_starts_no_run(tmp_path, capsys):
    arguments = ["train", "digits", "model.backbone.widths=32,32,32,32", "model.backbone.depths=1,1,1,1"]
    arguments += ["data.batch_size=256", "--lr-sweep", "4e-3,1e-3", "--sweep-epochs", "1", "--out", str(tmp_path)]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "suggested: optimizer.learning_rate=" in shown.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep"]
    names = ["lr-0.001", "lr-0.004", "sweep.json", "sweep.png"]
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == names
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert main([*arguments, "--fresh", "--json", "--lr-sweep", "1e-3"]) == 0
    assert json.loads(capsys.readouterr().out)["points"] == found["points"][:1]  # the same seed, the same losses
    assert (tmp_path / "sweep.old-1" / "sweep.json").exists()


@pytest.mark.parametrize("extra", [[], ["--lr-sweep", "1e-3,4e-3"]])
def test_sigterm_ends_the_command_with_143(tmp_path, monkeypatch, extra, capsys):
    step = Trainer._step

    def stopped(trainer, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *arguments)

    monkeypatch.setattr(Trainer, "_step", stopped)
    settings = ["model.backbone.widths=32,32,32,32", "model.backbone.depths=1,1,1,1", "data.batch_size=256"]
    assert main(["train", "digits", *settings, "--out", str(tmp_path / "run"), *extra]) == 143
    assert "stopped after step 1 of" in capsys.readouterr().err.splitlines()[-1]
