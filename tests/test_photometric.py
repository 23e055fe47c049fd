"""Photometric distortion: colours against a transcription, and how often each comes."""

import colorsys

import numpy as np
import torch
from PIL import Image

from davit.data.photometric import Colours, PhotometricDistortion
from transform_samples import NO_COLOURS


def transcription(pixels: np.ndarray, colours: Colours) -> np.ndarray:
    """The steps one pixel at a time, in float64, with Python's own HSV."""
    result = np.empty_like(pixels, dtype=np.float64)
    for place in np.ndindex(pixels.shape[:2]):
        values = [min(max(float(value) + colours.brightness, 0.0), 255.0) for value in pixels[place]]
        if not colours.contrast_last:
            values = [min(value * colours.contrast, 255.0) for value in values]
        hue, saturation, value = colorsys.rgb_to_hsv(*values)
        values = list(colorsys.hsv_to_rgb((hue + colours.hue) % 1.0, min(saturation * colours.saturation, 1.0), value))
        if colours.contrast_last:
            values = [min(value * colours.contrast, 255.0) for value in values]
        result[place] = values
    return result


def test_distortion_equals_its_transcription() -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    pixels = rng.integers(0, 256, (9, 11, 3)).astype(np.uint8)
    pixels[0, :4] = [[0, 0, 0], [255, 255, 255], [80, 80, 80], [255, 0, 0]]
    for _ in range(60):
        colours = PhotometricDistortion().draw()
        ours = np.asarray(colours.apply(Image.fromarray(pixels))).astype(float)
        assert np.abs(ours - transcription(pixels, colours)).max() <= 0.51, colours
    full = Colours(brightness=-20.0, contrast=1.4, saturation=1.5, hue=-0.1, contrast_last=True)
    ours = np.asarray(full.apply(Image.fromarray(pixels))).astype(float)
    assert np.abs(ours - transcription(pixels, full)).max() <= 0.51


def test_distortions_stay_in_their_ranges_and_each_comes_half_the_time() -> None:
    torch.manual_seed(0)
    drawn = [PhotometricDistortion().draw() for _ in range(2000)]
    limits = {"brightness": (-32, 32, 0), "contrast": (0.5, 1.5, 1), "saturation": (0.5, 1.5, 1), "hue": (-0.1, 0.1, 0)}
    for name, (least, most, still) in limits.items():
        values = np.array([getattr(colours, name) for colours in drawn])
        moved = values[values != still]
        assert abs(len(moved) / 2000 - 0.5) < 0.06
        assert least <= moved.min() < least + 0.05 * (most - least)
        assert most - 0.05 * (most - least) < moved.max() <= most
    last = np.array([colours.contrast_last for colours in drawn])
    assert abs(last.mean() - 0.5) < 0.06
    for name, (*_, still) in limits.items():  # independent of each other
        moved = np.array([getattr(colours, name) for colours in drawn]) != still
        assert abs((moved & last).mean() - 0.25) < 0.05


def test_no_distortion_changes_nothing_and_grey_stays_grey() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (7, 8, 3)).astype(np.uint8)
    assert np.array_equal(np.asarray(NO_COLOURS.draw().apply(Image.fromarray(pixels))), pixels)
    grey = Image.fromarray(pixels[..., 0])
    ours = Colours(brightness=10.0, saturation=1.3, hue=0.1, contrast=0.7).apply(grey)
    assert ours.mode == "L"
    expected = np.rint(np.minimum(pixels[..., 0] + 10.0, 255) * 0.7)
    assert np.abs(np.asarray(ours) - expected).max() <= 1
