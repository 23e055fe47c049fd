"""Runs: exact resume, safe saves, skipped steps, bad files, and what a run folder holds."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import davit
import davit.train.trainer as trainer_module
from davit.data.digits import Digits
from davit.decoding import ImageError
from davit.explain.run_report import write_run_report
from davit.recipes import make_recipe
from davit.records import assign, from_json, to_json
from davit.train.build import build_images, build_model
from davit.train.checkpoint import latest_point
from davit.train.recipe import Recipe
from davit.train.run import run
from davit.train.step import Stepper
from davit.train.stop import TrainingStoppedError
from runs import TINY, colour_folder, make_trainer, states_equal, stop_after, tiny_recipe, weights_of


def test_run_folder_holds_what_it_promises(tmp_path):
    result = run(tiny_recipe(), tmp_path / "run")
    folder = tmp_path / "run"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 <= metrics["top1"] <= metrics["top5"] <= 1
    assert metrics["count"] == 360
    assert metrics["parameters"] == sum(p.numel() for p in result.model.parameters())
    assert from_json(Recipe, json.loads((folder / "recipe.json").read_text())) == tiny_recipe()
    assert json.loads((folder / "environment.json").read_text())["torch"] == torch.__version__
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == [11, 22, 23]
    assert [r["step"] for r in records if "top1" in r] == [12, 23]
    model = davit.load(folder / "model.safetensors")
    assert model.classes == tuple("0123456789")
    assert model.preprocessing.size == (24, 24)
    images, targets = zip(*(Digits("test")[i] for i in range(360)), strict=True)
    with torch.no_grad():
        logits = model(torch.stack([model.preprocessing(image) for image in images]))
    assert (logits.argmax(1) == torch.tensor(targets)).float().mean().item() == pytest.approx(metrics["top1"])


@pytest.mark.parametrize("steps", [4, 12, 17])
@pytest.mark.parametrize(
    "settings", [{}, {"task.mixup": "0.8", "task.cutmix": "1.0", "runtime.ema": "0", "data.workers": "2"}]
)
def test_resume_is_exact(tmp_path, steps, settings):
    recipe = tiny_recipe()
    for path, text in settings.items():
        recipe = assign(recipe, path, text)
    whole = make_trainer(recipe, tmp_path / "whole")
    history = whole.run()

    first = make_trainer(recipe, tmp_path / "parts")
    stop_after(first, steps)
    with pytest.raises(TrainingStoppedError, match=f"step {steps} of 23"):
        first.run()
    second = make_trainer(recipe, tmp_path / "parts")
    second.resume(latest_point(tmp_path / "parts"))
    assert second.first_step == steps
    resumed = second.run()

    assert states_equal(weights_of(whole), weights_of(second))
    assert whole.stepper.progress() == second.stepper.progress()
    scores = [[(r["step"], r["top1"], r["validation_loss"]) for r in h if "top1" in r] for h in (history, resumed)]
    assert scores[0] == scores[1]
    assert [r["step"] for r in resumed] == [r["step"] for r in history]  # neither gaps nor repeats
    assert [r.get("loss") for r in resumed] == [r.get("loss") for r in history]


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    first = run(tiny_recipe(), tmp_path / "run")
    monkeypatch.setattr(Stepper, "gradients", lambda *_, **__: pytest.fail("a step was computed"))
    again = run(tiny_recipe(), tmp_path / "run")
    assert again.metrics["top1"] == first.metrics["top1"]
    assert states_equal(first.model.state_dict(), again.model.state_dict())
    assert again.metrics["seconds"] == first.metrics["seconds"]


def test_another_recipe_in_the_same_folder_is_refused(tmp_path):
    run(tiny_recipe(schedule__epochs="1"), tmp_path / "run")
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate: 0\.5 instead of 0\.004.*--fresh"):
        run(tiny_recipe(schedule__epochs="1", optimizer__learning_rate="0.5"), tmp_path / "run")


def test_not_finite_steps_are_skipped_and_counted(tmp_path):
    recipe = tiny_recipe(schedule__epochs="1")
    trainer = make_trainer(recipe, tmp_path / "run")
    stepper, losses = trainer.stepper, trainer.stepper.task.losses
    gradients, skip = stepper.gradients, stepper.skip
    at, now, before = {3: math.nan, 6: math.inf}, [0], {}

    def counted(batches, step, rate, **rest):
        now[0] = step
        before[step] = weights_of(trainer)
        return gradients(batches, step, rate, **rest)

    def skipped():
        skip()
        if now[0] in at:
            assert states_equal(before[now[0]], weights_of(trainer))

    stepper.gradients, stepper.skip = counted, skipped
    stepper.task.losses = lambda model, batch: {"loss": losses(model, batch)["loss"] * at.get(now[0], 1.0)}
    history = trainer.run()
    assert trainer.progress["skipped"] == 2
    assert not states_equal(before[4], before[5])
    assert next(r for r in history if "loss" in r)["skipped"] == 2
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    trainer = make_trainer(recipe, tmp_path / "again")
    trainer.stepper.task.losses = lambda model, batch: {"loss": losses(model, batch)["loss"] * math.nan}
    with pytest.raises(ValueError, match="10 steps in a row"):
        trainer.run()


def test_damaged_checkpoints_are_passed_over_and_named(tmp_path, capsys):
    recipe = tiny_recipe(runtime__save_minutes="0")
    trainer = make_trainer(recipe, tmp_path / "run")
    trainer.run()
    folders = sorted((tmp_path / "run").glob("step-*"))
    assert [folder.name for folder in folders] == ["step-00000022", "step-00000023"]
    rng = np.random.default_rng(0)
    for path in folders[1].iterdir():
        content = path.read_bytes()
        for _ in range(100):
            flipped = bytearray(content)
            flipped[rng.integers(len(flipped))] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            assert latest_point(tmp_path / "run").step == 22
            assert "step-00000023 is damaged" in capsys.readouterr().err
        for cut in {0, 1, len(content) // 2, len(content) - 1, *rng.integers(len(content), size=20).tolist()}:
            path.write_bytes(content[:cut])
            assert latest_point(tmp_path / "run").step == 22
        path.unlink()
        assert latest_point(tmp_path / "run").step == 22
        path.write_bytes(content)
    assert latest_point(tmp_path / "run").step == 23
    (tmp_path / "run" / "step-00000030.tmp").mkdir()
    assert latest_point(tmp_path / "run").step == 23
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_full_disk_keeps_the_run_and_the_earlier_checkpoint(tmp_path):
    """A file-size limit stands in for a full disk: the first save fits, later ones are made to fail."""
    script = f"""
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from runs import make_trainer, tiny_recipe
import davit.train.trainer as trainer_module
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
trainer = make_trainer(tiny_recipe(runtime__save_minutes="0"), Path({str(tmp_path / "run")!r}))
save = trainer_module.save_point
def limited(folder, step, *rest):
    if step == 5:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
    if step == 7:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if step == 9:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
    return save(folder, step, *rest)
trainer_module.save_point = limited
trainer.run()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "OSError: could not save" in done.stderr.splitlines()[-1]
    assert done.stderr.count("the run goes on") == 5  # steps 5 and 6, then 9, 10 and 11: three in a row end it
    assert latest_point(tmp_path / "run").step == 8
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_finetune_learns_colours_from_a_folder_and_from_a_checkpoint(tmp_path):
    root = colour_folder(tmp_path / "data")
    recipe = make_recipe("finetune", "davit_pico")
    small = replace(TINY, in_channels=3)
    recipe = replace(recipe, model=replace(recipe.model, backbone=small))
    for path, text in {
        "data.root": str(root), "data.image_size": "24", "data.batch_size": "6", "data.workers": "0",
        "schedule.epochs": "12", "schedule.warmup_epochs": "1", "optimizer.learning_rate": "0.003",
        "data.augmentation.rand_augment": "", "task.mix_probability": "0", "runtime.ema": "0.9",
    }.items():  # fmt: skip
        recipe = assign(recipe, path, text)
    result = run(recipe, tmp_path / "run")
    assert result.model.classes == ("blue", "green", "red")
    assert result.metrics["top1"] == 1.0
    other = colour_folder(tmp_path / "more", ("amber", "blue", "green", "red"))
    second = assign(assign(recipe, "model.init", str(tmp_path / "run" / "model.safetensors")), "data.root", str(other))
    model = build_model(second, ("amber", "blue", "green", "red"))
    assert states_equal(model.backbone.state_dict(), result.model.backbone.state_dict())
    assert torch.equal(model.head.weight[1:], result.model.head.weight)  # rows follow the class names
    with pytest.raises(ValueError, match=r"takes 3 channels, data\.channels is 1"):
        build_model(assign(second, "data.channels", "1"), ("a", "b"))


def small_finetune(root: Path, **settings: str) -> Recipe:
    recipe = make_recipe("finetune", "davit_pico")
    recipe = replace(recipe, model=replace(recipe.model, backbone=replace(TINY, in_channels=3)))
    given = {
        "data.root": str(root), "data.image_size": "24", "data.batch_size": "6", "data.workers": "0",
        "schedule.epochs": "3", "schedule.warmup_epochs": "1", "data.augmentation.rand_augment": "",
    }  # fmt: skip
    for path, text in (given | {key.replace("__", "."): value for key, value in settings.items()}).items():
        recipe = assign(recipe, path, text)
    return recipe


def test_bad_files_are_replaced_named_and_bounded(tmp_path, monkeypatch, capsys):
    root = colour_folder(tmp_path / "data" / "train").parent
    colour_folder(root / "val")
    (root / "train" / "red" / "3.png").write_bytes(b"not an image")
    first = run(small_finetune(root), tmp_path / "first")
    assert first.metrics["unreadable_samples"] == 3  # once an epoch
    assert len(first.metrics["replaced_files"]) == 1
    assert "3.png" in first.metrics["replaced_files"][0]
    assert "3.png" in write_run_report(first).read_text()
    assert "replaced by another sample" in capsys.readouterr().err
    again = run(small_finetune(root, data__workers="1"), tmp_path / "again")
    assert states_equal(first.model.state_dict(), again.model.state_dict())
    monkeypatch.setattr(trainer_module, "FAULTS_ALLOWED", 1)
    with pytest.raises(ValueError, match="2 samples could not be read, more than 1; mend the data"):
        run(small_finetune(root), tmp_path / "third")
    (root / "val" / "red" / "3.png").write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"3\.png"):  # evaluation never replaces
        run(small_finetune(root), tmp_path / "fourth")


def test_a_disk_that_cannot_hold_two_resume_folders_is_refused_at_the_start(tmp_path, monkeypatch):
    make_trainer(tiny_recipe(), tmp_path / "whole").run()
    saved = sum(file.stat().st_size for file in next((tmp_path / "whole").glob("step-*")).iterdir())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(1.5 * saved)))
    with pytest.raises(OSError, match=r"two resume folders of .* MB must fit: make space or choose another --out"):
        make_trainer(tiny_recipe(), tmp_path / "run").run()
    make_trainer(tiny_recipe(), tmp_path / "whole").run()  # what is there counts: it will be replaced


def test_validation_classes_are_matched_by_name(tmp_path):
    colour_folder(tmp_path / "train")
    colour_folder(tmp_path / "val", ("green", "red"))
    recipe = assign(make_recipe("finetune"), "data.root", str(tmp_path))
    images = build_images(recipe.data, 0)
    assert images.validation.classes == images.train.classes
    assert {images.validation.labels[i] for i in range(len(images.validation))} == {1, 2}
    assert "blue" in images.notes[0]
    colour_folder(tmp_path / "val" / "..", ("violet",)).joinpath("violet").rename(tmp_path / "val" / "violet")
    with pytest.raises(ValueError, match="violet"):
        build_images(recipe.data, 0)


def test_recipes_survive_json_and_refuse_unknown_fields():
    for name in ("digits", "finetune"):
        recipe = make_recipe(name)
        assert from_json(Recipe, json.loads(json.dumps(to_json(recipe)))) == recipe
    with pytest.raises(ValueError, match=r"unknown recipe 'digit'.*'digits'"):
        make_recipe("digit")
    with pytest.raises(ValueError, match=r"unknown field 'optimizer.learning_rat'.*'optimizer.learning_rate'"):
        assign(recipe, "optimizer.learning_rat", "1")
    with pytest.raises(ValueError, match="must be of type int, got 'many'"):
        assign(recipe, "data.batch_size", "many")
    with pytest.raises(ValueError, match=r"data\.augmentation is a group of fields"):
        assign(recipe, "data.augmentation", "strong")
    assert assign(recipe, "model.backbone.widths", "32,64,96,128").model.backbone.widths == (32, 64, 96, 128)
