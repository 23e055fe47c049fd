"""The recipes: the paper's settings, what follows from what, and what they tell of themselves."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from davit.cli import main
from davit.cli.train import recipe_with
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig
from davit.models.variants import VARIANTS
from davit.recipes import RECIPES, about_recipe, make_recipe
from davit.recipes.about import estimate
from davit.records import assign, differences, field_paths, from_json, to_json
from davit.train.recipe import Recipe
from davit.train.schedule import rate_at

DROP_PATH = {"tiny": 0.1, "small": 0.2, "base": 0.4, "large": 0.4, "huge": 0.5, "giant": 0.5}
IMAGENET = [name for name in RECIPES if name.startswith("imagenet")]


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `davit train` prints."""
    assert main(["train", *arguments]) == 0
    return capsys.readouterr().out


def flat(recipe: Recipe) -> dict[str, object]:
    values = {}
    for path in field_paths(recipe):
        value = recipe
        for name in path.split("."):
            value = getattr(value, name)
        values[path] = value
    return values


@pytest.mark.parametrize("size", DROP_PATH)
def test_the_papers_settings(size):
    values = flat(make_recipe(f"imagenet.davit_{size}"))
    wanted = {
        "model.variant": f"davit_{size}",
        "model.init": "",
        "model.backbone.drop_path": DROP_PATH[size],
        "model.backbone.window": 7,
        "task.label_smoothing": 0.1,
        "task.mixup": 0.8,
        "task.cutmix": 1.0,
        "task.mix_probability": 1.0,
        "task.mix_switch": 0.5,
        "data.image_size": 224,
        "data.crop": 0.9,
        "data.interpolation": "bicubic",
        "data.batch_size": 1024,
        "data.augmentation.crop_scale": (0.08, 1.0),
        "data.augmentation.flip": 0.5,
        "data.augmentation.rand_augment": "rand-m9-mstd0.5-inc1",
        "data.augmentation.erasing": 0.25,
        "optimizer.learning_rate": 1e-3,
        "optimizer.weight_decay": 0.05,
        "optimizer.betas": (0.9, 0.999),
        "optimizer.eps": 1e-8,
        "optimizer.clip_norm": 1.0,
        "optimizer.layer_decay": 1.0,
        "optimizer.frozen_epochs": 0.0,
        "schedule.epochs": 300,
        "schedule.cooldown_epochs": 10,
        "schedule.warmup_epochs": 5,
        "runtime.ema": 0.0,
        "runtime.seed": 42,
    }
    assert {path: values[path] for path in wanted} == wanted
    schedule = make_recipe(f"imagenet.davit_{size}").schedule
    assert 1e-3 * rate_at(schedule, 0, 1251) == pytest.approx(1e-6)
    assert 1e-3 * rate_at(schedule, 309 * 1251, 1251) == pytest.approx(1e-5)


def test_the_same_recipe_but_for_the_size():
    """One builder: members differ in architecture, drop path and what a size needs to fit, and in nothing else."""
    tiny = to_json(make_recipe("imagenet.davit_tiny"))
    for size in DROP_PATH:
        lines = differences(to_json(make_recipe(f"imagenet.davit_{size}")), tiny)
        changed = {line.split(":")[0] for line in lines}
        allowed = {"name", "model.variant", "runtime.parallel"}
        assert {path for path in changed if not path.startswith("model.backbone.")} <= allowed


@pytest.mark.parametrize(
    ("name", "size", "window"), [("large_384", 384, 12), ("huge_512", 512, 16), ("giant_512", 512, 16)]
)
def test_fine_tuning_starts_from_what_pre_training_leaves(name, size, window):
    recipe = make_recipe(f"imagenet.davit_{name}")
    first = make_recipe(f"imagenet22k.davit_{name.split('_')[0]}")
    assert recipe.model.init == f"runs/{first.name}/model.safetensors"
    assert (recipe.data.image_size, recipe.model.backbone.window, recipe.data.crop) == (size, window, 1.0)
    assert about_recipe(first.name).classes == 21841
    for stride in (4, 8, 16, 32):
        assert first.data.image_size // stride % first.model.backbone.window == 0  # no padding in either phase
        assert size // stride % window == 0
    with torch.device("meta"):
        models = [Classifier(ClassifierConfig(backbone=r.model.backbone)) for r in (first, recipe)]
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("batch", "rate"), [("1024", 1e-3), ("2048", 2e-3), ("128", 1.25e-4)])
def test_the_learning_rate_follows_the_batch(batch, rate, capsys):
    assert recipe_with("imagenet.davit_small", [f"data.batch_size={batch}"]).optimizer.learning_rate == rate
    for settings in (
        [f"data.batch_size={batch}", "optimizer.learning_rate=0.1"],
        ["optimizer.learning_rate=0.1", f"data.batch_size={batch}"],
    ):  # a rate that is given is the rate, in either order
        recipe = recipe_with("imagenet.davit_small", settings)
        assert (recipe.data.batch_size, recipe.optimizer.learning_rate) == (int(batch), 0.1)
    assert recipe_with("finetune", [f"data.batch_size={batch}"]).optimizer == make_recipe("finetune").optimizer
    line = f"data.batch_size={batch}"
    assert f"optimizer.learning_rate={rate}\n" in told(capsys, "imagenet.davit_small", line, "--fields")


def test_a_run_says_that_the_rate_followed(tmp_path, capsys):
    arguments = ["train", "imagenet.davit_tiny", f"data.root={tmp_path}", "--out", str(tmp_path / "run")]
    assert main([*arguments, "data.batch_size=256"]) == 2  # no images there
    assert "optimizer.learning_rate=0.00025 follows data.batch_size=256" in capsys.readouterr().err
    assert main([*arguments, "data.batch_size=256", "optimizer.learning_rate=0.001"]) == 2
    assert "follows" not in capsys.readouterr().err


def test_fine_tuning_is_gentle_only_with_known_weights():
    fresh, known = make_recipe("finetune"), recipe_with("finetune", ["model.init=weights.safetensors"])
    assert (fresh.optimizer.layer_decay, fresh.optimizer.frozen_epochs) == (1.0, 0.0)
    assert known.optimizer.layer_decay < 1
    assert known.optimizer.frozen_epochs > 0
    assert known.model.init == "weights.safetensors"
    assert known.schedule.warmup_epochs > known.optimizer.frozen_epochs  # the freed backbone begins below the peak
    changed = {line.split(":")[0] for line in differences(to_json(known), to_json(fresh))}
    assert changed == {"model.init", "optimizer.layer_decay", "optimizer.frozen_epochs"}
    mine = recipe_with("finetune", ["optimizer.layer_decay=0.5", "model.init=w", "optimizer.frozen_epochs=0"])
    assert (mine.optimizer.layer_decay, mine.optimizer.frozen_epochs) == (0.5, 0.0)
    assert recipe_with("finetune", ["model.init="]) == fresh


def test_settings_that_go_together_are_judged_together() -> None:
    settings = ["schedule.drops=", "schedule.shape=cosine", "schedule.epochs=4"]
    for order in (settings, settings[::-1]):
        schedule = recipe_with("coco.mask_rcnn_1x", order).schedule
        assert (schedule.shape, schedule.drops, schedule.epochs) == ("cosine", (), 4)
    with pytest.raises(ValueError, match="go together"):
        recipe_with("coco.mask_rcnn_1x", settings[1:])
    task = ["model.head.kind=retinanet", "task.masks=false"]
    assert recipe_with("digits.detection", task).model.head == recipe_with("digits.detection", task[::-1]).model.head


def test_the_variant_is_heard_wherever_it_is_given():
    settings = ["model.backbone.drop_path=0.3", "model.variant=davit_nano"]
    for order in (settings, settings[::-1]):
        backbone = recipe_with("imagenet.davit_tiny", order).model.backbone
        assert (backbone.widths, backbone.drop_path) == (VARIANTS["davit_nano"].widths, 0.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.batch_size=many"], r"data\.batch_size must be of type int, got 'many'"),
        (["data.batch_size=0"], r"data\.batch_size must be at least 1, got 0"),
        (["model.variant=davit_tinny"], "unknown variant 'davit_tinny'.*'davit_tiny'"),
        (["optimizer.frozen_epochs=-1"], "frozen_epochs must not be negative"),
        (["schedule.epochs"], "is no setting: write field=value"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        recipe_with("imagenet.davit_tiny", settings)


def test_unknown_recipes_name_the_nearest():
    with pytest.raises(ValueError, match=r"unknown recipe 'imagenet\.davit_tinny'.*'imagenet\.davit_tiny'"):
        make_recipe("imagenet.davit_tinny")
    with pytest.raises(ValueError, match=r"unknown recipe 'imagenet22k\.davit_huje'.*'imagenet22k\.davit_huge'"):
        about_recipe("imagenet22k.davit_huje")


@pytest.mark.parametrize("name", RECIPES)
def test_what_every_recipe_promises(name):
    recipe = make_recipe(name)
    assert recipe.name == name
    assert from_json(Recipe, json.loads(json.dumps(to_json(recipe)))) == recipe
    told = about_recipe(name)
    assert all((told.summary, told.source, told.ours, told.command, told.expected))
    words = shlex.split(told.command)
    arguments = words[words.index("train") + 1 :]  # the command is one that runs
    assert arguments[0] == name
    assert recipe_with(name, arguments[1:]).name == name


@pytest.mark.parametrize("name", ["imagenet.davit_tiny", "imagenet22k.davit_large", "imagenet.davit_giant_512"])
def test_costs_are_those_of_the_model_itself(name):
    """The closed form against torch's own counter of one forward pass, on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    recipe, told = make_recipe(name), about_recipe(name)
    size = recipe.data.image_size
    with torch.device("meta"):
        model = Classifier(ClassifierConfig(backbone=recipe.model.backbone, num_classes=told.classes)).eval()
        images = torch.empty(1, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        model(images)
    cost = estimate(recipe, told, 100.0)
    assert 2 * cost.macs == pytest.approx(counter.get_total_flops(), rel=1e-3)
    passes = 4 if recipe.model.backbone.gradient_checkpointing else 3
    assert cost.flops == pytest.approx(2 * cost.macs * passes * told.images * recipe.schedule.total_epochs)
    assert cost.hours == pytest.approx(cost.flops / 100e12 / 3600)


def test_about_tells_sources_arithmetic_and_score(capsys):
    text = " ".join(told(capsys, "imagenet.davit_tiny", "--about").split())
    for part in (
        "2204.03645",
        "0.95",
        "4.522 GMACs x 2 x 3 passes x 1,281,167 images x 310 epochs",
        "82.8",
        "torchrun",
    ):
        assert part in text
    text = told(capsys, "imagenet.davit_tiny", "--about", "--tflops", "128", "--json")
    assert json.loads(text)["device_hours"] == pytest.approx(4.522e9 * 6 * 1_281_167 * 310 / 128e12 / 3600, rel=1e-3)
    assert json.loads(told(capsys, "finetune", "--about", "--json"))["device_hours"] is None
    assert "10,000 images" in told(capsys, "finetune", "--about")


def test_list_has_a_line_for_each_recipe(capsys):
    lines = told(capsys, "--list").splitlines()
    assert [line.split()[0] for line in lines[1 : len(RECIPES) + 1]] == list(RECIPES)
    rows = json.loads(told(capsys, "--list", "--json"))
    assert [row["name"] for row in rows] == list(RECIPES)
    assert {"summary", "command", "expected", "device_hours"} <= rows[0].keys()


def test_the_docs_table_is_what_the_recipes_say():
    text = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
    for name in IMAGENET:
        recipe, told = make_recipe(name), about_recipe(name)
        cost = estimate(recipe, told, 64.0)
        row = re.search(rf"^\| `{re.escape(name)}` \|(.*)$", text, re.MULTILINE)
        assert row, name
        cells = [cell.strip() for cell in row[1].split("|")]
        assert cells[:5] == [
            f"{recipe.data.image_size} / {recipe.model.backbone.window}",
            f"{recipe.model.backbone.drop_path:g}",
            f"{cost.macs / 1e9:,.4g}",
            f"{cost.flops:.2g}".replace("e+", "e"),
            f"{cost.hours:,.0f}",
        ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say which recipe to run: davit train --list"),
        (["digits", "--about", "--fields"], "--fields and --about exclude each other"),
        (["digits", "--world", "8"], "--world goes with --dry-run"),
        (["digits", "--sweep-epochs", "2"], "--sweep-epochs goes with --lr-sweep"),
        (["digits", "--tflops", "100"], "--tflops goes with --dry-run or --about"),
        (["digits", "--about", "--tflops", "0"], "--tflops positive"),
        (["digits", "--lr-sweep", "1e-3,fast"], "rates divided by commas, such as 1e-4,3e-4,1e-3, got '1e-3,fast'"),
        (["digits", "--lr-sweep", "1e-3,-1"], "takes positive rates"),
        (["digits", "--lr-sweep", "1e-3", "--sweep-epochs", "0"], "--sweep-epochs must be at least 1"),
    ],
)
def test_wrong_usage_says_what_to_do(arguments, message, capsys, tmp_path):
    assert main(["train", *arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_settings_stand_before_and_behind_options(capsys):
    lines = told(capsys, "digits", "--json", "schedule.epochs=3", "--fields", "data.batch_size=32")
    assert json.loads(lines)["schedule"]["epochs"] == 3
    assert json.loads(lines)["data"]["batch_size"] == 32
    assert json.loads(told(capsys, "--about", "--tflops", "128", "finetune", "--json"))["tflops"] == 128


def test_every_field_can_be_set_back_to_what_fields_prints(capsys):
    """What --fields prints are settings: given back, they change nothing."""
    for name in ("digits", "finetune", "imagenet.davit_giant_512"):
        recipe = make_recipe(name)
        lines = told(capsys, name, "--fields").splitlines()
        for line in lines[1:]:  # the first is the name
            path, _, text = line.partition("=")
            recipe = assign(recipe, path, text)
        assert recipe == make_recipe(name)
