"""The dry run: its memory against that of real steps, its other figures against arithmetic done here."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allocations import allocated
from davit.models.classifier import Classifier
from davit.models.complexity import count_macs
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.recipes import make_recipe
from davit.records import assign
from davit.train import device_memory
from davit.train.build import build_model
from davit.train.dry_run import report
from davit.train.ema import Average
from davit.train.footprint import Footprint, Moment, footprint
from davit.train.optimizer import make_optimizer
from runs import colour_folder, tiny_recipe

MIB = 2**20
SMALL = DaViTConfig(widths=(32, 64, 96, 128), depths=(1, 1, 1, 1), drop_path=0.1)


@pytest.fixture
def uncounted(monkeypatch):
    """For tests that ask for other things than memory."""
    nothing = Moment()
    counted = Footprint(kept=nothing, peak=nothing, beside_gradients=nothing, beside_weights=nothing)
    monkeypatch.setattr(device_memory, "footprint", lambda *_, **__: counted)


def entropy(model: nn.Module, images: Tensor) -> Tensor:
    return F.cross_entropy(model(images).float(), torch.zeros(len(images), dtype=torch.int64))


def measured_peak(config: ClassifierConfig, shape: tuple[int, ...], precision: torch.dtype) -> int:
    model = Classifier(config).train()

    def step() -> None:
        images = torch.randn(shape)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = entropy(model, images)
        loss.backward()

    return allocated(step)


@pytest.mark.parametrize(
    ("size", "batch", "checkpointing", "precision"),
    [
        (96, 4, False, torch.float32),
        (100, 8, True, torch.float32),
        (96, 8, False, torch.bfloat16),
    ],
)
def test_memory_is_that_of_a_real_step(size, batch, checkpointing, precision):
    backbone = replace(SMALL, gradient_checkpointing=checkpointing)
    config, shape = ClassifierConfig(backbone=backbone, num_classes=10), (batch, 3, size, size)
    counted = footprint(lambda: Classifier(config), entropy, shape, precision=precision, gpu=False)
    assert counted.peak.total == pytest.approx(measured_peak(config, shape, precision), rel=0.1)


def test_memory_of_a_whole_run_is_that_of_a_real_one():
    recipe = tiny_recipe(runtime__device="cpu", data__batch_size="64")
    planned = report(recipe).memory

    def two_steps() -> None:
        model = build_model(recipe, tuple("0123456789")).train()
        optimizer, average = make_optimizer(model, recipe.optimizer), Average(model, recipe.runtime.ema)
        for _ in range(2):  # the moments are there from the second on
            entropy(model, torch.randn(64, 1, 24, 24)).backward()
            optimizer.step()
            average.update()
            optimizer.zero_grad()

    assert planned.total == pytest.approx(allocated(two_steps), rel=0.05)


def test_a_gpu_keeps_norms_in_fp32():
    config = ClassifierConfig(backbone=SMALL, num_classes=10)
    kept = {
        gpu: footprint(lambda: Classifier(config), entropy, (2, 3, 64, 64), precision=torch.bfloat16, gpu=gpu).kept
        for gpu in (False, True)
    }
    assert kept[True].activations > 1.05 * kept[False].activations
    matrices = sum(p.numel() for p in Classifier(config).parameters() if p.ndim > 1)
    assert kept[True].copies == pytest.approx(2 * matrices, rel=0.02)


def test_parts_steps_and_days():
    recipe = tiny_recipe(data__batch_size="96", runtime__ema="0.9", runtime__device="cpu")
    plan = report(recipe, world=1, tflops=0.1)
    weights = sum(
        p.numel() for p in Classifier(ClassifierConfig(backbone=recipe.model.backbone, num_classes=10)).parameters()
    )
    parts = plan.memory.parts()
    assert (plan.parameters, parts["parameters"], parts["moments"], parts["average"]) == (
        weights,
        4 * weights,
        8 * weights,
        4 * weights,
    )
    assert parts["communication"] == plan.communication == 0
    assert (plan.images, plan.micro_batch, plan.precision) == (1437, 96, torch.float32)
    assert plan.steps == 30  # 2 x 1437 / 96 = 29.9
    size = recipe.data.image_size
    assert plan.flops == 6 * count_macs(recipe.model.backbone, size, size, 10)
    assert plan.days == pytest.approx(30 * 96 * plan.flops / 1e11 / 86400)
    assert plan.to_json()["memory"]["total"] == sum(parts.values())
    assert any("total" in line for line in plan.lines())


def test_ddp_and_fsdp():
    recipe = tiny_recipe(data__batch_size="64", runtime__precision="bf16")
    ddp = report(recipe, world=4)
    fsdp = report(assign(recipe, "runtime.parallel", "fsdp"), world=4)
    weights = ddp.parameters
    assert ddp.micro_batch == fsdp.micro_batch == 16
    assert ddp.communication == 2 * 3 * weights * 4 // 4  # each device passes on 3/4 of the gradients, twice
    assert ddp.memory.parameters == 4 * weights
    assert fsdp.memory.parameters == 4 * -(-weights // 4)
    assert fsdp.memory.moments == 4 * -(-2 * weights // 4)
    # blocks are gathered for forward and backward, the rest once, in 2 bytes; gradients are scattered in 4
    model = Classifier(ClassifierConfig(backbone=recipe.model.backbone, num_classes=10))
    blocks = sum(p.numel() for name, p in model.named_parameters() if ".blocks." in name)
    assert fsdp.communication == pytest.approx(0.75 * (2 * (weights + blocks) + 4 * weights), abs=1)
    assert fsdp.memory.communication > 0


def test_accumulation_halves_activations_and_keeps_gradients():
    recipe = tiny_recipe(runtime__device="cpu")
    one, two = report(recipe), report(assign(recipe, "runtime.accumulate", "2"))
    assert two.micro_batch == one.micro_batch // 2
    assert two.memory.activations == pytest.approx(one.memory.activations / 2, rel=0.01)
    assert two.memory.gradients == 4 * two.parameters
    assert one.steps == two.steps


def test_checkpointing_takes_a_third_more_arithmetic_and_less_memory():
    recipe = tiny_recipe(model__backbone__gradient_checkpointing="true")
    plan = report(recipe)
    assert plan.memory == plan.checkpointed
    assert plan.checkpointed.total < plan.plain.total
    macs = count_macs(recipe.model.backbone, recipe.data.image_size, recipe.data.image_size, 10)
    assert plan.flops == 2 * 4 * macs
    assert "with gradient checkpointing:" in "\n".join(plan.lines())


@pytest.mark.usefixtures("uncounted")
def test_images_are_counted_or_known_or_asked_for(tmp_path):
    finetune = assign(make_recipe("finetune", "davit_pico"), "data.image_size", "32")
    with pytest.raises(ValueError, match=r"data\.root"):
        report(finetune)
    colours = assign(finetune, "data.root", str(colour_folder(tmp_path / "colours")))
    plan = report(assign(colours, "data.batch_size", "4"))
    assert 12 <= plan.images < 24
    assert any("held out" in note for note in plan.notes)
    known = report(replace(finetune, name="imagenet.mine"))
    assert known.images == 1_281_167
    assert any("1,281,167" in note for note in known.notes)


def test_what_cannot_be_planned_is_refused():
    recipe = tiny_recipe(data__batch_size="64")
    with pytest.raises(ValueError, match="multiple of 3"):
        report(recipe, world=3)
    with pytest.raises(ValueError, match="world"):
        report(recipe, world=0)
    with pytest.raises(ValueError, match="tflops"):
        report(recipe, tflops=0)


@pytest.mark.usefixtures("uncounted")
def test_initial_weights_decide_the_architecture(tmp_path):
    from davit import create_model
    from davit.weights.save import save

    path = tmp_path / "start.safetensors"
    save(create_model("davit_pico", num_classes=4, window=5), path)
    recipe = replace(make_recipe("finetune", "davit_nano"), name="imagenet.mine")
    recipe = assign(assign(recipe, "data.image_size", "32"), "model.init", str(path))
    assert report(recipe).recipe.model.backbone.window == 5
    missing = report(assign(recipe, "model.init", str(tmp_path / "later.safetensors")))
    assert any("was not read" in note for note in missing.notes)


@pytest.mark.slow
def test_giant_is_planned_in_little_memory():
    script = (
        "import re; from dataclasses import replace; from pathlib import Path; from davit.recipes import make_recipe;"
        "from davit.train.dry_run import report;"
        "r = replace(make_recipe('finetune', 'davit_giant'), name='imagenet.x');"
        "plan = report(r, world=64); assert plan.parameters > 1.4e9, plan.parameters;"
        "print(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])"
    )  # not ru_maxrss, which begins at what the parent has
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 1024 * int(done.stdout) < 1536 * MIB  # its weights alone would be 5.4 GiB
