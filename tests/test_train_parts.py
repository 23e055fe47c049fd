"""What a run is made of: depths of layers, sampling, augmentation, the built-in digits."""

import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import davit
from davit.cpus import usable_cpus
from davit.data.digits import Digits
from davit.data.folder import ClassFolder
from davit.data.loader import Share, StepSampler, TrainSamples, train_loader
from davit.data.transforms import Augmentation, TrainTransform
from davit.preprocessing import Preprocessing
from davit.recipes import make_recipe
from davit.records import from_json, to_json
from davit.seeding import seed_everything
from davit.train.device import pick_workers
from davit.train.optimizer import OptimizerConfig, layer_depths, parameter_groups
from davit.train.schedule import rate_at
from runs import colour_folder


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


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 33),
    rows=st.integers(1, 4),
    size=st.integers(1, 3),
    accumulate=st.integers(1, 3),
    seed=st.integers(0, 3),
    first=st.integers(0, 9),
)
def test_each_sample_once_an_epoch_however_it_is_shared(samples, rows, size, accumulate, seed, first):
    batch_size = rows * size * accumulate
    steps = range(3 * samples // batch_size)
    alone = list(StepSampler(samples, batch_size, seed, steps))
    stream = [key for batch in alone for key in batch]
    assert [epoch for epoch, _ in stream] == [position // samples for position in range(len(stream))]
    for epoch in range(len(stream) // samples):
        assert sorted(index for e, index in stream if e == epoch) == list(range(samples))
    assert list(StepSampler(samples, batch_size, seed, steps[first:])) == alone[first:]
    shares = [Share(rank=rank, size=size, accumulate=accumulate) for rank in range(size)]
    dealt = [list(StepSampler(samples, batch_size, seed, steps, share)) for share in shares]
    for step in steps:
        parts = [part for micro in dealt for part in micro[step * accumulate : (step + 1) * accumulate]]
        assert [len(part) for part in parts] == [rows] * (size * accumulate)
        assert [key for part in parts for key in part] == alone[step]


def test_the_first_epoch_may_begin_with_what_is_listed_first():
    steps = [key for batch in StepSampler(10, 4, 3, range(5), begin_in_order=True) for key in batch]
    assert steps[:10] == [(0, index) for index in range(10)]
    assert steps[10:] == [key for batch in StepSampler(10, 4, 3, range(5)) for key in batch][10:]


def test_a_batch_that_cannot_be_shared_says_what_could():
    with pytest.raises(ValueError, match=r"10 cannot be shared by 2 processes x 3 .*multiple of 6"):
        StepSampler(100, 10, 0, range(1), Share(size=2, accumulate=3))


def test_workers_and_restarts_never_change_the_data():
    preprocessing = Preprocessing(size=(24, 24), mean=(0.5,), std=(0.5,))
    transform = TrainTransform(Augmentation(erasing=0.5), preprocessing)
    samples = TrainSamples(Digits("test"), transform, seed=3)

    def batches(workers: int, first: int) -> list[torch.Tensor]:
        return [b.images for b in train_loader(samples, StepSampler(360, 40, 3, range(first, 12)), workers)]

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


def test_the_rate_of_the_official_dense_schedules():
    """The step and polynomial updaters of mmcv with linear warm-up, written out."""
    coco = make_recipe("coco.mask_rcnn_3x", init="").schedule
    per_epoch = 117_266 / 16
    for step in (0, 1, 250, 499, 500, 100_000, 197_886, 197_887, 241_861, 241_862, 263_000):
        epoch = step / per_epoch
        regular = 0.1 ** ((epoch >= 27) + (epoch >= 33))
        warm = 1 - (1 - step / 500) * (1 - 1e-3) if step < 500 else 1.0
        assert rate_at(coco, step, per_epoch) == pytest.approx(regular * warm)
    ade = make_recipe("ade20k.upernet", init="").schedule
    assert ade.total_steps(20_210, 16) == 160_000
    for step in (0, 1, 750, 1499, 1500, 80_000, 159_999):
        warm = 1 - (1 - step / 1500) * (1 - 1e-6) if step < 1500 else 1.0
        assert rate_at(ade, step, 20_210 / 16) == pytest.approx(warm * (1 - step / 160_000))


def test_stored_recipes_of_every_task_are_read_back():
    for name in (
        "digits.detection",
        "digits.segmentation",
        "coco.retinanet_1x",
        "ade20k.upernet",
        "imagenet.davit_tiny",
    ):
        recipe = make_recipe(name, init="")
        assert from_json(type(recipe), json.loads(json.dumps(to_json(recipe)))) == recipe


def test_every_tensor_decays_where_the_official_dense_recipes_say_so():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    some = parameter_groups(model, OptimizerConfig(weight_decay=0.05))
    every = parameter_groups(model, OptimizerConfig(weight_decay=0.05, decay_all=True))
    assert sorted(group["weight_decay"] for group in some) == [0.0, 0.05]
    assert [group["weight_decay"] for group in every] == [0.05]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin processes")
def test_workers_are_counted_for_the_processors_that_a_process_may_use():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cpus() == 1
        assert pick_workers(-1, torch.device("cpu")) == 0
        assert pick_workers(-1, torch.device("cuda")) == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert usable_cpus() == len(allowed)
