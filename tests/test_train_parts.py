"""What a run is made of: schedule, parameter groups, sampling, augmentation, the built-in digits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler

import davit
from davit.data.digits import Digits
from davit.data.folder import ClassFolder
from davit.data.loader import StepSampler, TrainSamples, train_loader
from davit.data.transforms import Augmentation, TrainTransform
from davit.preprocessing import Preprocessing
from davit.seeding import seed_everything
from davit.train.optimizer import OptimizerConfig, layer_depths, parameter_groups
from davit.train.schedule import ScheduleConfig, rate_at
from runs import colour_folder


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 5), st.integers(1, 7), st.floats(0, 0.5))
def test_schedule_equals_timm(epochs, warmup, steps_per_epoch, floor):
    warmup = min(warmup, epochs)
    config = ScheduleConfig(epochs=epochs, warmup_epochs=warmup, warmup_start=1e-3, floor=floor, cooldown_epochs=3)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = CosineLRScheduler(
        optimizer,
        epochs * steps_per_epoch,
        floor,
        warmup_t=warmup * steps_per_epoch,
        warmup_lr_init=1e-3,
        t_in_epochs=False,
    )
    for step in range(config.total_epochs * steps_per_epoch):
        scheduler.step_update(step)
        assert rate_at(config, step, steps_per_epoch) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)


def test_weight_decay_groups_equal_timm():
    model = davit.create_model("davit_pico", num_classes=10)
    ours = parameter_groups(model, OptimizerConfig(weight_decay=0.05))
    theirs = param_groups_weight_decay(model, 0.05)
    for group in theirs:
        mine = [g for g in ours if g["weight_decay"] == group["weight_decay"]]
        assert {id(p) for g in mine for p in g["params"]} == {id(p) for p in group["params"]}


def test_layer_decay_falls_from_head_to_stem():
    model = davit.create_model("davit_pico", num_classes=10)  # depths 1, 1, 2, 1
    depths = layer_depths(model)
    assert depths["backbone.stages.0.downsample.proj.weight"] == 0
    assert depths["backbone.stages.0.blocks.0.window.attn.qkv.weight"] == 1
    assert depths["backbone.stages.2.downsample.proj.weight"] == 3
    assert depths["backbone.stages.2.blocks.1.channel.mlp.fc1.weight"] == 4
    assert depths["backbone.stages.3.blocks.0.window.norm_attn.weight"] == 5
    assert depths["head.weight"] == depths["norm.weight"] == 6
    groups = parameter_groups(model, OptimizerConfig(layer_decay=0.5))
    scales = sorted({group["scale"] for group in groups})
    assert scales == [0.5**k for k in range(6, -1, -1)]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 33), st.integers(1, 5), st.integers(0, 3))
def test_each_sample_once_an_epoch(samples, batch_size, seed):
    if samples < batch_size:
        with pytest.raises(ValueError, match="do not fill one batch"):
            StepSampler(samples, batch_size, seed, 0, 1)
        return
    per_epoch = samples // batch_size
    batches = list(StepSampler(samples, batch_size, seed, 0, 2 * per_epoch))
    for epoch in range(2):
        keys = [key for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for key in batch]
        assert {e for e, _ in keys} == {epoch}
        assert len({index for _, index in keys}) == len(keys) == per_epoch * batch_size
    middle = per_epoch + per_epoch // 2
    assert list(StepSampler(samples, batch_size, seed, middle, 2 * per_epoch)) == batches[middle:]


def test_workers_and_restarts_never_change_the_data():
    preprocessing = Preprocessing(size=(24, 24), mean=(0.5,), std=(0.5,))
    transform = TrainTransform(Augmentation(erasing=0.5), preprocessing)
    samples = TrainSamples(Digits("test"), transform, seed=3)

    def batches(workers: int, first: int) -> list[torch.Tensor]:
        return [b.images for b in train_loader(samples, StepSampler(360, 40, 3, first, 12), workers)]

    whole = batches(0, 0)
    assert all(torch.equal(a, b) for a, b in zip(whole, batches(2, 0), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole[7:], batches(1, 7), strict=True))
    assert not torch.equal(whole[0], whole[9])  # the second epoch is drawn anew


def test_digits_split_is_fixed_and_disjoint():
    train, test = Digits("train"), Digits("test")
    assert (len(train), len(test)) == (1437, 360)
    seen = {train[i][0].tobytes() for i in range(len(train))}
    assert sum(test[i][0].tobytes() in seen for i in range(len(test))) == 0
    assert set(train.labels) == set(test.labels) == set(range(10))


def test_unreadable_images_are_replaced_alike_in_every_rerun(tmp_path):
    root = colour_folder(tmp_path / "data")
    (root / "red" / "3.png").write_bytes(b"not an image")
    images = ClassFolder(root)
    bad = images.paths.index(root / "red" / "3.png")
    samples = TrainSamples(images, lambda image: torch.tensor(np.array(image)), seed=5)
    first, second = samples[(2, bad)], samples[(2, bad)]
    assert first.index == second.index != bad
    assert torch.equal(first.pixels, second.pixels)
    assert "3.png" in first.faults[0]
    assert len({samples[(epoch, bad)].index for epoch in range(12)}) > 1


def test_every_magnitude_of_rand_augment_can_be_drawn():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    for magnitude in range(11):
        policy = f"rand-m{magnitude}-n2-inc1"
        transform = TrainTransform(Augmentation(rand_augment=policy), Preprocessing(size=(24, 24)))
        for seed in range(60):
            seed_everything(seed)
            assert transform(image).isfinite().all()
