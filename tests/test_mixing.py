"""Mixup and cutmix: timm's, with neighbours in place of mirror images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import Mixup

from davit.structures import Batch
from davit.tasks.classification import ClassificationConfig, ClassificationTask
from davit.tasks.mixing import neighbours


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    alphas=st.sampled_from([(0.8, 1.0), (0.2, 0.0), (0.0, 1.0), (1.0, 0.3)]),
    probability=st.sampled_from([1.0, 0.5]),
    smoothing=st.sampled_from([0.0, 0.1]),
    size=st.tuples(st.integers(3, 12), st.integers(3, 12)),
)
def test_mixing_equals_timm_for_the_same_pairs(seed, alphas, probability, smoothing, size):
    mixup, cutmix = alphas
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 3, *size, generator=generator)
    targets = torch.randint(5, (6,), generator=generator)
    order = torch.tensor([0, 2, 4, 5, 3, 1])  # timm mixes i with 5 - i: here 0 with 1, 2 with 3, 4 with 5
    theirs = Mixup(
        mixup, cutmix, prob=probability, switch_prob=0.5, label_smoothing=smoothing, num_classes=5, mode="batch"
    )
    np.random.seed(seed)  # noqa: NPY002 - both draw from the global generator
    their_images, their_targets = theirs(images[order].clone(), targets[order])

    config = ClassificationConfig(
        mixup=mixup, cutmix=cutmix, mix_probability=probability, mix_switch=0.5, label_smoothing=smoothing
    )
    seen = []

    def model(mixed):
        seen.append(mixed)
        return mixed.mean((2, 3)) @ torch.linspace(-1, 1, 15).view(3, 5)

    np.random.seed(seed)  # noqa: NPY002
    loss = ClassificationTask(config, 5).losses(model, Batch(images=images, targets=targets))["loss"]
    torch.testing.assert_close(seen[0][order], their_images, atol=1e-6, rtol=1e-6)
    expected = -(their_targets * model(their_images).log_softmax(-1)).sum(-1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_last_of_an_odd_batch_stays():
    assert neighbours(torch.arange(5)).tolist() == [1, 0, 3, 2, 4]
