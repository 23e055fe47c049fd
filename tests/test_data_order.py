"""What is seen, in which order, with which pixels: the same for any number of workers, processes and restarts."""

import hashlib
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from davit.data.digits import Digits
from davit.data.loader import Part, Share, StepSampler, TrainSamples, train_loader
from davit.data.transforms import Augmentation, TrainTransform
from davit.preprocessing import Preprocessing
from davit.records import assign
from davit.tasks.classification import ClassificationTask
from davit.train.build import Images, build_model
from davit.train.distributed import World
from davit.train.run import make_plan
from davit.train.sides import list_images, make_task
from runs import tiny_dense_recipe, tiny_recipe

PREPROCESSING = Preprocessing(size=(16, 16), mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize("restarts", [(), (3,), (1, 4, 7)])
def test_workers_processes_and_restarts_give_the_same_pixels(restarts):
    images = Part(Digits("test"), list(range(30)))
    samples = TrainSamples(images, TrainTransform(Augmentation(erasing=0.5), PREPROCESSING), seed=7)
    steps = 10  # 80 positions, 2.7 epochs

    def digest(workers: int, size: int) -> list[tuple[tuple[int, ...], str]]:
        """Samples and pixels of each step."""
        starts = [0, *restarts]
        parts: list[list] = [[] for _ in range(steps)]
        for rank in range(size):
            for start, end in zip(starts, [*restarts, steps], strict=True):
                sampler = StepSampler(30, 8, 7, range(start, end), Share(rank=rank, size=size))
                for step, batch in zip(range(start, end), train_loader(samples, sampler, workers), strict=True):
                    parts[step].append((batch.ids, batch.images))
        seen = []
        for step in parts:
            ids = tuple(i for theirs, _ in step for i in theirs)
            pixels = torch.cat([images for _, images in step])
            seen.append((ids, hashlib.sha256(pixels.numpy().tobytes()).hexdigest()))
        return seen

    expected = digest(0, 1)
    assert len({pixels for _, pixels in expected}) == steps
    for workers, size in [(1, 1), (4, 1), (0, 2), (0, 4), (1, 2)]:
        assert digest(workers, size) == expected, (workers, size)


class Blanks:
    """So many grey pictures."""

    classes = ("a", "b")

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("L", (2, 2), index % 256), index % 2


@pytest.mark.parametrize("name", ["digits.segmentation", "digits.detection", "digits.contrastive"])
def test_bright_scenes_come_first_in_training_and_never_in_evaluation(name):
    recipe = tiny_dense_recipe(name, data__bright_share="0.4")
    images = list_images(recipe)
    plan = make_plan(recipe, build_model(recipe, images.train.classes), make_task(recipe, images), images)
    order = [index for batch in plan.batches(range(10)) for index in batch.ids]
    assert order[:30] == list(range(30))
    assert order[30:] != order[:30]
    usual = list_images(assign(recipe, "data.bright_share", "0"))
    changed = [index for index in range(30) if images.train[index][0] != usual.train[index][0]]
    assert changed == list(range(12))
    assert all(images.validation[i][0] == usual.validation[i][0] for i in range(len(usual.validation)))


@pytest.mark.parametrize("name", ["digits.segmentation", "digits.contrastive"])
def test_crowded_scenes_are_for_training_alone(name):
    recipe = tiny_dense_recipe(name, data__sparse_share="0", data__most_digits="0", data__fewest_digits="1")
    usual, crowded = (list_images(assign(recipe, "data.most_digits", most)) for most in ("0", "20"))
    spread = [sum(float(np.asarray(images.train[i][0]).std()) for i in range(30)) for images in (usual, crowded)]
    assert spread[1] > 1.1 * spread[0]
    assert all(crowded.validation[i][0] == usual.validation[i][0] for i in range(len(usual.validation)))
    for fewest, most in (("9", "8"), ("0", "8"), ("1", "25")):
        with pytest.raises(ValueError, match="fewest_digits and most_digits must lie in 1 to 24"):
            replace(recipe.data, fewest_digits=int(fewest), most_digits=int(most))


def test_some_scenes_are_sparse_among_crowded_ones():
    recipe = tiny_dense_recipe(
        "digits.segmentation", data__fewest_digits="12", data__most_digits="16", data__scenes="60"
    )
    crowded, mixed = (list_images(assign(recipe, "data.sparse_share", share)).train for share in ("0", "0.5"))
    laid = [[len(scenes.placed(index)) for index in range(60)] for scenes in (crowded, mixed)]
    assert min(laid[0]) > 6
    assert 5 < sum(count < min(laid[0]) for count in laid[1]) < 40
    assert max(laid[1]) > 8
    with pytest.raises(ValueError, match="sparse_share is a share of scenes with fewer than fewest_digits"):
        replace(recipe.data, fewest_digits=1, sparse_share=0.1)


@pytest.mark.parametrize(("field", "most"), [("bend", 2.0), ("stroke", 60.0)])
@pytest.mark.parametrize("name", ["digits.segmentation", "digits.detection", "digits.contrastive"])
def test_digits_are_bent_and_redrawn_in_training_alone(name, field, most):
    recipe = tiny_dense_recipe(name)
    usual, other = (list_images(assign(recipe, f"data.{field}", value)) for value in ("0", str(most / 2)))
    assert sum(other.train[i][0] != usual.train[i][0] for i in range(30)) > 20
    assert all(other.validation[i][0] == usual.validation[i][0] for i in range(len(usual.validation)))
    with pytest.raises(ValueError, match=f"{field} must lie in 0 to {most}"):
        replace(recipe.data, **{field: most + 1})


def test_images_that_are_no_scenes_are_shuffled_whatever_the_share_of_bright_ones():
    recipe = tiny_recipe(data__bright_share="0.5")
    images = list_images(recipe)
    plan = make_plan(recipe, build_model(recipe, images.train.classes), make_task(recipe, images), images)
    (batch,) = plan.batches(range(1))
    assert list(batch.ids) != list(range(len(batch.ids)))


def test_evaluation_counts_each_image_once():
    recipe = tiny_recipe(data__workers="0", data__image_size="2")
    model = build_model(recipe, ("a", "b"))
    task = ClassificationTask(recipe.task, 2)
    cases = [*product(range(1, 34), range(1, 5), range(1, 6)), (2000, 3, 128), (2000, 4, 100)]
    for count, size, batch in cases:
        here = replace(recipe, data=replace(recipe.data, batch_size=batch * size))
        images = Images(Blanks(max(count, batch * size)), Blanks(count))
        seen, most = [], 0
        for rank in range(size):
            plan = make_plan(here, model, task, images, World(rank=rank, size=size))
            batches = list(plan.validation())
            seen += [float(b.images.sum()) for b in batches for _ in b.targets]
            most = max(most, len(batches))
            mine = [int(t) for b in batches for t in b.targets]
            assert len(mine) == len(range(rank, count, size))
        assert len(seen) == count
        assert plan.validation_count == most  # what the smaller shares fill up to
