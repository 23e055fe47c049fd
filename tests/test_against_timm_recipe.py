"""Schedule, parameter groups and augmentation against timm's, for the paper's settings and around them."""

import math

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, create_scheduler_v2
from torch import nn

import davit
from davit.data import transforms
from davit.data.transforms import Augmentation, TrainTransform, resize_fast
from davit.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from davit.recipes import make_recipe
from davit.seeding import seed_everything
from davit.train.optimizer import OptimizerConfig, parameter_groups
from davit.train.schedule import ScheduleConfig, rate_at
from davit.weights.convert.timm import TIMM

PAPER = make_recipe("imagenet.davit_tiny")
SMALL = {"widths": (32, 64, 96, 128), "depths": (1, 2, 3, 1)}


def rates_of(scheduler: CosineLRScheduler, steps: int) -> list[float]:
    """The rates that timm's scheduler sets, each before its update."""
    found = []
    for step in range(steps):
        scheduler.step_update(step)
        found.append(scheduler.optimizer.param_groups[0]["lr"])
    return found


@settings(max_examples=40, deadline=None)
@given(
    peak=st.floats(1e-5, 1.0),
    epochs=st.integers(1, 40),
    warmup=st.integers(0, 5),
    cooldown=st.integers(0, 4),
    steps_per_epoch=st.integers(1, 7),
    floor=st.floats(0, 0.5),
    start=st.floats(0, 1),
)
def test_every_step_has_timms_rate(peak, epochs, warmup, cooldown, steps_per_epoch, floor, start):
    warmup = min(warmup, epochs)
    config = ScheduleConfig(
        epochs=epochs, warmup_epochs=warmup, cooldown_epochs=cooldown, warmup_start=start, floor=floor
    )
    scheduler, total = create_scheduler_v2(
        torch.optim.SGD([torch.zeros(1)], lr=peak),
        num_epochs=epochs,
        cooldown_epochs=cooldown,
        warmup_epochs=warmup,
        min_lr=floor * peak,
        warmup_lr=start * peak,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    assert total == config.total_epochs
    theirs = rates_of(scheduler, total * steps_per_epoch)
    ours = [peak * rate_at(config, step, steps_per_epoch) for step in range(total * steps_per_epoch)]
    assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12 * peak)


@settings(max_examples=40, deadline=None)
@given(epochs=st.integers(2, 30), warmup=st.floats(0, 2), samples=st.integers(5, 60), batch=st.integers(1, 40))
def test_epochs_that_are_no_whole_number_of_steps(epochs, warmup, samples, batch):
    config = ScheduleConfig(epochs=epochs, warmup_epochs=warmup, cooldown_epochs=1, warmup_start=1e-3, floor=1e-2)
    per_epoch = samples / batch
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = CosineLRScheduler(
        optimizer,
        epochs * per_epoch,
        1e-2,
        warmup_t=round(warmup * per_epoch),
        warmup_lr_init=1e-3,
        t_in_epochs=False,
    )
    steps = math.ceil(config.total_epochs * per_epoch)
    ours = [rate_at(config, step, per_epoch) for step in range(steps)]
    assert ours == pytest.approx(rates_of(scheduler, steps), rel=1e-9)


@pytest.mark.parametrize("scale", [1, 2])
def test_how_far_the_official_schedule_is_from_ours(scale):
    """It holds a rate for an epoch, and start and floor are absolute: equal at epochs' starts for 1e-3, else near."""
    per_epoch, peak = 8, scale * PAPER.optimizer.learning_rate
    scheduler, total = create_scheduler_v2(
        torch.optim.SGD([torch.zeros(1)], lr=peak),
        num_epochs=300,
        cooldown_epochs=10,
        warmup_epochs=5,
        min_lr=1e-5,
        warmup_lr=1e-6,
    )
    assert total == PAPER.schedule.total_epochs == 310
    absolute = 1e-5 * (scale - 1)  # by how much our start or floor is higher
    for epoch in range(total):
        scheduler.step(epoch)
        theirs = scheduler.optimizer.param_groups[0]["lr"]
        ours = [peak * rate_at(PAPER.schedule, epoch * per_epoch + step, per_epoch) for step in range(per_epoch)]
        assert ours[0] == pytest.approx(theirs, abs=absolute + 1e-12)
        slope = peak / 5 if epoch < 5 else peak * math.pi / 2 / 300  # most that an epoch changes
        assert max(abs(rate - theirs) for rate in ours) <= slope + absolute
    middle = [rate_at(PAPER.schedule, 150 * per_epoch + step, per_epoch) for step in (0, per_epoch - 1)]
    assert middle[0] - middle[1] > 0.8 * math.pi / 2 / 300 * (1 - 1 / per_epoch)  # the bound is not idle


@pytest.fixture(scope="module", name="twins")
def make_twins() -> tuple[nn.Module, nn.Module, dict[str, str]]:
    """Our model, timm's of the same shape, and timm's name for each of our parameters."""
    ours = davit.create_model("davit_tiny", num_classes=10, **SMALL)
    theirs = timm.create_model(
        "davit_tiny",
        embed_dims=SMALL["widths"],
        depths=SMALL["depths"],
        num_heads=tuple(width // 32 for width in SMALL["widths"]),
        num_classes=10,
    )
    names = dict(zip(ours.state_dict(), TIMM.from_ours(ours.state_dict()), strict=True))
    shapes = {name: parameter.shape for name, parameter in theirs.named_parameters()}
    assert {names[name]: parameter.shape for name, parameter in ours.named_parameters()} == shapes
    return ours, theirs, names


def settings_by_name(model: nn.Module, groups: list[dict], key: str, missing: float) -> dict[str, tuple[float, float]]:
    """Weight decay and share of the rate of each parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["weight_decay"], group.get(key, missing))
        for group in groups
        for parameter in group["params"]
    }
    assert len(found) == sum(len(group["params"]) for group in groups) == len(names)
    return found


def test_weight_decay_is_timms(twins):
    ours, theirs, names = twins
    mine = settings_by_name(ours, parameter_groups(ours, OptimizerConfig(weight_decay=0.05)), "scale", 1.0)
    other = settings_by_name(theirs, param_groups_weight_decay(theirs, 0.05), "lr_scale", 1.0)
    assert {names[name]: value for name, value in mine.items()} == other
    assert mine["backbone.stages.0.blocks.0.window.cpe_attn.dwconv.weight"][0] == 0.05  # the paper's code decays these
    assert mine["backbone.stages.0.blocks.0.window.cpe_attn.dwconv.bias"][0] == 0.0


@settings(max_examples=20, deadline=None)
@given(layer_decay=st.floats(0.3, 0.99), weight_decay=st.floats(1e-4, 0.3))
def test_layer_decay_is_timms_for_every_parameter(twins, layer_decay, weight_decay):
    ours, theirs, names = twins
    config = OptimizerConfig(layer_decay=layer_decay, weight_decay=weight_decay)
    mine = settings_by_name(ours, parameter_groups(ours, config), "scale", 1.0)
    groups = param_groups_layer_decay(theirs, weight_decay, layer_decay=layer_decay)
    other = settings_by_name(theirs, groups, "lr_scale", 1.0)
    assert {names[name]: value for name, value in mine.items()} == {
        name: (decay, pytest.approx(scale)) for name, (decay, scale) in other.items()
    }
    assert len({scale for _, scale in mine.values()}) == sum(SMALL["depths"]) + 2


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    filters=st.sampled_from(["bicubic", "bilinear"]),
)
def test_the_fast_resize_is_near_pillows(seed, shape, size, filters):
    """Where nothing is clipped."""
    pixels = np.random.default_rng(seed).integers(48, 208, (*shape, 3), dtype=np.uint8)
    preprocessing = Preprocessing(size=size, interpolation=filters)
    found = np.asarray(resize_fast(Image.fromarray(pixels), preprocessing), dtype=int)
    expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], preprocessing.resampling), dtype=int)
    assert np.abs(found - expected).max() <= 2


@pytest.fixture
def pillows_resize():
    """Resize as timm does, to compare all else to the bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            transforms,
            "resize_fast",
            lambda image, preprocessing: image.resize(preprocessing.size[::-1], preprocessing.resampling),
        )
        yield


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(12, 90), st.integers(12, 90)),
    size=st.integers(16, 48),
    policy=st.sampled_from(["rand-m9-mstd0.5-inc1", "rand-m7-mstd0.5-inc1", "rand-m5-n3", ""]),
    least=st.sampled_from([0.08, 0.35]),
    flip=st.sampled_from([0.0, 0.5]),
    erasing=st.sampled_from([0.0, 0.25, 1.0]),
    filters=st.sampled_from(["bicubic", "bilinear"]),
)
def test_the_same_seeds_give_timms_pixels(pillows_resize, seed, shape, size, policy, least, flip, erasing, filters):
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    pixels[: shape[0] // 2, : shape[1] // 2] //= 3  # noise alone would look like itself after most changes
    image = Image.fromarray(pixels)
    ours = TrainTransform(
        Augmentation(crop_scale=(least, 1.0), flip=flip, rand_augment=policy, erasing=erasing),
        Preprocessing(size=(size, size), interpolation=filters),
    )
    theirs = create_transform(
        size,
        is_training=True,
        scale=(least, 1.0),
        hflip=flip,
        color_jitter=None,
        auto_augment=policy or None,
        interpolation=filters,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        re_prob=erasing,
        re_mode="pixel",
    )
    seed_everything(seed % 2**31)
    found = ours(image)
    seed_everything(seed % 2**31)
    try:
        expected = theirs(image)
    except ValueError:  # timm asks Pillow 13 for no bits at all: transforms.py, `_posterize`
        return
    assert torch.equal(found, expected)


def test_the_papers_augmentation_is_timms_at_full_size(pillows_resize):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8))
    data = PAPER.data
    ours = TrainTransform(data.augmentation, Preprocessing.imagenet(data.image_size))
    theirs = create_transform(
        224,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
    )
    compared = 0
    for seed in range(12):
        seed_everything(seed)
        found = ours(image)
        seed_everything(seed)
        try:
            assert torch.equal(found, theirs(image))
        except ValueError:
            continue
        compared += 1
    assert compared >= 10
