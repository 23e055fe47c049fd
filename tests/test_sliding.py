"""Segmentation at any size against plain float64 transcriptions of mmsegmentation's formulas, but for odd sizes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from davit.evaluation.sliding import RATIOS, multi_scale, sliding, whole

KERNEL = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def model(images: Tensor) -> Tensor:
    """Logits of 4 classes at a quarter of the size, that depend on what lies around a position, and on the edges."""
    return F.conv2d(images, KERNEL, stride=4, padding=2)


def plain_model(image: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(image)[None])[0].numpy()


def axis_weights(given: int, wanted: int, antialias: bool = False) -> np.ndarray:
    """Linear interpolation along one axis, (wanted, given): a triangle around each wanted centre."""
    step = given / wanted
    reach = max(1.0, step) if antialias else 1.0
    centres = ((np.arange(wanted) + 0.5) * step - 0.5)[:, None]
    if not antialias:
        centres = centres.clip(0, given - 1)
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(given)[None] - centres) / reach)
    return weights / weights.sum(1, keepdims=True)


def plain_resize(x: np.ndarray, height: int, width: int, antialias: bool = False) -> np.ndarray:
    rows, columns = (axis_weights(x.shape[1], height, antialias), axis_weights(x.shape[2], width, antialias))
    return np.einsum("yh,khw,xw->kyx", rows, x, columns)


def plain_whole(image: np.ndarray) -> np.ndarray:
    logits, (_, height, width) = plain_model(image), image.shape
    return plain_resize(logits, 4 * logits.shape[1], 4 * logits.shape[2])[:, :height, :width]


def plain_sliding(image: np.ndarray, crop: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """Every pixel's mean over the windows that hold it, window by window."""
    _, height, width = image.shape
    corners = set()
    for top in range(0, height, stride[0]):
        for left in range(0, width, stride[1]):
            corners.add((max(min(top, height - crop[0]), 0), max(min(left, width - crop[1]), 0)))
    total, count = np.zeros((4, height, width)), np.zeros((height, width))
    for top, left in sorted(corners):
        part = plain_whole(image[:, top : top + crop[0], left : left + crop[1]])
        total[:, top : top + crop[0], left : left + crop[1]] += part
        count[top : top + crop[0], left : left + crop[1]] += 1
    assert count.min() > 0
    return total / count


def softmax(x: np.ndarray) -> np.ndarray:
    shares = np.exp(x - x.max(0))
    return shares / shares.sum(0)


def image(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, dtype=torch.float64)


def test_whole_is_interpolated_to_the_image() -> None:
    images = image(33, 47)
    assert np.allclose(whole(model, images)[0], plain_whole(images[0].numpy()), rtol=0, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(5, 60),
    width=st.integers(5, 60),
    crop=st.tuples(st.integers(8, 24), st.integers(8, 24)),
    strides=st.tuples(st.integers(3, 24), st.integers(3, 24)),
)
def test_sliding_equals_its_transcription(
    height: int, width: int, crop: tuple[int, int], strides: tuple[int, int]
) -> None:
    stride = (min(strides[0], crop[0]), min(strides[1], crop[1]))
    images = image(height, width)
    found = sliding(model, images, crop, stride)
    assert found.shape == (1, 4, height, width)
    assert np.allclose(found[0], plain_sliding(images[0].numpy(), crop, stride), rtol=0, atol=1e-9)


def test_windows_at_the_border_are_shifted_inwards() -> None:
    seen = []

    def record(images: Tensor) -> Tensor:
        seen.append((*images[0, :, 0, 0].tolist(), *images.shape[-2:]))
        return images

    places = torch.stack(torch.meshgrid(torch.arange(10.0), torch.arange(25.0), indexing="ij"))[None]
    found = sliding(record, places, crop=(16, 10), stride=(8, 8))
    assert seen == [(0, 0, 10, 10), (0, 8, 10, 10), (0, 15, 10, 10)]  # rows 0, 8 and 15, not 16
    assert torch.equal(found, places)


def test_a_window_larger_than_the_image_is_the_whole_image() -> None:
    images = image(20, 31).repeat(2, 1, 1, 1)
    for crop in ((20, 31), (512, 512), (20, 40)):
        assert torch.equal(sliding(model, images, crop, (10, 10)), whole(model, images))


def test_a_constant_model_gives_constants() -> None:
    values = torch.tensor([0.25, -3.0, 7.5])

    def constant(images: Tensor) -> Tensor:
        return values[None, :, None, None].expand(len(images), 3, 4, 4)

    images = torch.randn(2, 3, 61, 45)
    wanted = values[None, :, None, None].expand(2, 3, 61, 45)
    assert torch.allclose(whole(constant, images), wanted, rtol=1e-6)
    assert torch.allclose(sliding(constant, images, (16, 16), (11, 7)), wanted, rtol=1e-6)
    assert torch.allclose(multi_scale(constant, images), wanted.softmax(1), rtol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.75, 1.4])
def test_multi_scale_equals_its_transcription(scale: float, flip: bool) -> None:
    images = image(37, 52)
    pixels = images[0].numpy()
    shares = []
    for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
        size = (int(37 * scale * ratio + 0.5), int(52 * scale * ratio + 0.5))  # as mmcv rounds
        view = plain_resize(pixels, *size, antialias=True)
        shares.append(softmax(plain_resize(plain_whole(view), 37, 52)))
        if flip:
            mirrored = plain_whole(view[:, :, ::-1].copy())
            shares.append(softmax(plain_resize(mirrored, 37, 52))[:, :, ::-1])
    found = multi_scale(model, images, scale, flip=flip)
    assert np.allclose(found[0], np.mean(shares, 0), rtol=0, atol=1e-10)
    assert torch.allclose(found.sum(1), torch.ones(1, 37, 52, dtype=torch.float64))


def test_multi_scale_takes_windows_too() -> None:
    images = image(30, 40)

    def windows(view: Tensor) -> Tensor:
        return sliding(model, view, (16, 16), (10, 10))

    found = multi_scale(windows, images, ratios=(1.0,), flip=False)
    assert torch.equal(found, windows(images).softmax(1))
    assert RATIOS == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def test_what_cannot_be_done_is_refused() -> None:
    images = image(20, 20)
    for crop, stride in (((8, 8), (9, 8)), ((8, 8), (8, 9)), ((8, 8), (0, 8)), ((0, 8), (0, 8))):
        with pytest.raises(ValueError, match="stride must lie in 1 to the side of a window"):
            sliding(model, images, crop, stride)
    with pytest.raises(ValueError, match="needs ratios"):
        multi_scale(model, images, ratios=())
    with pytest.raises(ValueError, match="above 0"):
        multi_scale(model, images, ratios=(0.5, 0.0))
