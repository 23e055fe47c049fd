"""Our preprocessing against timm's, torchvision's and plain Pillow: the same numbers, for any picture."""

import random
import resource

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms
from transformers.image_transforms import resize as transformers_resize

from davit.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from davit.records import from_json, to_json

BICUBIC = transforms.InterpolationMode.BICUBIC


def noise(width: int, height: int) -> Image.Image:
    """Noise, because every pixel that moves shows."""
    rng = np.random.default_rng(width * 10_000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))


def odd_sizes(count: int) -> list[tuple[int, int]]:
    rng = random.Random(0)
    fixed = [(1, 1), (1, 9), (9, 1), (224, 224), (248, 248), (249, 248), (248, 249), (224, 500), (37, 811)]
    return fixed + [(rng.randint(1, 500), rng.randint(1, 500)) for _ in range(count)]


@pytest.mark.parametrize("crop", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("size", [(224, 224), (65, 65), (97, 131), (64, 32)])
def test_crop_equals_timm(size: tuple[int, int], crop: float) -> None:
    theirs = create_transform(
        (3, *size), crop_pct=crop, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD, is_training=False
    )
    ours = Preprocessing(size=size, crop=crop)
    for width, height in odd_sizes(5):
        image = noise(width, height)
        assert torch.equal(ours(image), theirs(image)), (width, height)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
def test_crop_equals_torchvision(interpolation: str) -> None:
    theirs = transforms.Compose(
        [
            transforms.Resize(248, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    ours = Preprocessing(size=(224, 224), interpolation=interpolation)
    for width, height in odd_sizes(4):
        image = noise(width, height)
        assert torch.equal(ours(image), theirs(image)), (width, height)


def test_squash_equals_transformers() -> None:
    ours = Preprocessing(size=(48, 64), fit="squash", crop=1.0)
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    for width, height in odd_sizes(8):
        image = noise(width, height)
        theirs = transformers_resize(
            np.asarray(image), (48, 64), resample=Image.Resampling.BICUBIC, input_data_format="channels_last"
        )
        pixels = torch.from_numpy(np.array(theirs)).permute(2, 0, 1) / 255
        assert torch.allclose(ours(image), (pixels - mean) / std, atol=1e-6, rtol=0), (width, height)


def test_grey_models_see_grey_and_colour_models_see_three_equal_channels() -> None:
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    plain = {"size": (8, 8), "crop": 1.0}
    one = Preprocessing(**plain, mean=(0.0,), std=(1.0,))(grey)
    three = Preprocessing(**plain, mean=(0.0,) * 3, std=(1.0,) * 3)(grey)
    assert torch.equal(one, torch.arange(64).view(1, 8, 8) / 255)
    assert torch.equal(three, one.expand(3, 8, 8))
    assert torch.equal(Preprocessing(**plain, mean=(0.0,), std=(1.0,))(grey.convert("RGB")), one)


def test_models_of_other_channels_ask_for_tensors() -> None:
    with pytest.raises(ValueError, match="takes 4"):
        Preprocessing.imagenet(8, channels=4)(noise(8, 8))


@pytest.mark.parametrize("sides", [(1, 30_000), (30_000, 1), (30_000, 7)])
def test_extreme_pictures_take_little_memory(sides: tuple[int, int]) -> None:
    image = Image.new("RGB", sides, (200, 100, 50))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = Preprocessing(size=(224, 224), mean=(0.0,) * 3, std=(1.0,) * 3)(image)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024
    assert torch.equal((pixels * 255).round()[:, 0, 0], torch.tensor([200.0, 100.0, 50.0]))
    assert pixels.shape == (3, 224, 224)


def test_the_part_computed_of_extreme_pictures_is_the_part_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.linspace(0, 255, 900)[None, :, None].repeat(11, 0).repeat(3, 2).astype(np.uint8)
    for image in (Image.fromarray(ramp), Image.fromarray(ramp.swapaxes(0, 1))):
        ours = Preprocessing(size=(64, 64), mean=(0.0,) * 3, std=(1.0,) * 3)
        whole = ours(image)
        monkeypatch.setattr("davit.preprocessing._MOST_RESIZED", 0)
        assert (ours(image) - whole).abs().max() <= 1.001 / 255
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"size": (0, 8)}, "size"),
        ({"size": (8, 8), "crop": 1.5}, "crop"),
        ({"size": (8, 8), "crop": 0.0}, "crop"),
        ({"size": (8, 8), "fit": "pad"}, "fit"),
        ({"size": (8, 8), "interpolation": "area"}, "interpolation"),
        ({"size": (8, 8), "std": (0.0, 1.0, 1.0)}, "std"),
        ({"size": (8, 8), "mean": (0.5,)}, "mean"),
    ],
)
def test_what_cannot_be_applied_is_refused(fields: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Preprocessing(**fields)


def test_it_survives_json() -> None:
    ours = Preprocessing(size=(97, 131), crop=0.95, interpolation="bilinear", mean=(0.1,), std=(0.2,))
    assert from_json(Preprocessing, to_json(ours)) == ours


@pytest.mark.parametrize("fit", ["crop", "squash", "within"])
@pytest.mark.parametrize("size", [(90, 120), (120, 90), (64, 64), (300, 64)])
def test_a_point_is_placed_where_its_pixels_go(fit: str, size: tuple[int, int]) -> None:
    preprocessing = Preprocessing(size=(48, 60), fit=fit, crop=0.8, mean=(0.5,), std=(0.5,))  # type: ignore[arg-type]
    height, width = size
    for y, x in ((height // 2, width // 2), (height // 2 + 9, width // 2 - 12)):
        image = np.zeros((height, width), np.uint8)
        image[y - 2 : y + 3, x - 2 : x + 3] = 255
        light = preprocessing(Image.fromarray(image))[0].clamp_min(-1) + 1
        rows, columns = torch.meshgrid(*(torch.arange(side) + 0.5 for side in light.shape), indexing="ij")
        found = [float((light * place).sum() / light.sum()) for place in (rows, columns)]
        assert preprocessing.place(y + 0.5, x + 0.5, height, width) == pytest.approx(tuple(found), abs=0.6)
