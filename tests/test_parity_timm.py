"""Our models, loaded through the converters, against timm's DaViT: logits, maps and gradients."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from davit.models.classifier import Classifier
from davit.models.davit import DaViT
from davit.models.variants import VARIANTS
from davit.weights.convert.recognise import locate
from davit.weights.convert.timm import TIMM, TIMM_NAMED
from davit.weights.load import load
from foreign import DEPTHS, GRADIENT_CASES, HEADS, SIZES, WIDTHS, gradient_error, randomise, relative_error, write

FLORENCE = {"window_size": 12, "down_kernel_size": 3, "channel_attn_v2": True, "named_blocks": True}
SMALL = {"embed_dims": WIDTHS, "depths": DEPTHS, "num_heads": HEADS, "num_classes": 10}


def small(window: int = 7, **options: object) -> nn.Module:
    return randomise(timm.create_model("davit_tiny", **{**SMALL, "window_size": window, **options}))


def maps_of(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    return model.forward_intermediates(images, intermediates_only=True)


def compare(ours: Classifier, theirs: nn.Module, images: torch.Tensor) -> None:
    """Logits and maps within 1e-5."""
    with torch.no_grad():
        mine, other = ours.backbone(images), maps_of(theirs, images)
        logits, wanted = ours.head(ours.norm(mine[-1].mean((2, 3)))), theirs.forward_head(other[-1])
    for found, expected in zip([logits, *mine], [wanted, *other], strict=True):
        assert relative_error(found, expected) < 1e-5


def pair(folder: Path, options: dict[str, object]) -> tuple[Classifier, nn.Module]:
    theirs = small(**options)
    ours = load(write(theirs.state_dict(), folder / "timm.safetensors"), window=12 if options else 7)
    assert isinstance(ours, Classifier)
    return ours, theirs


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", [{}, FLORENCE], ids=["paper", "florence2"])
def test_small(tmp_path: Path, size: tuple[int, int], batch: int, options: dict[str, object]) -> None:
    compare(*pair(tmp_path, options), torch.randn(batch, 3, *size))


@pytest.mark.parametrize(("batch", "size"), GRADIENT_CASES, ids=str)
@pytest.mark.parametrize("options", [{}, FLORENCE], ids=["paper", "florence2"])
def test_gradients(tmp_path: Path, size: tuple[int, int], batch: int, options: dict[str, object]) -> None:
    ours, theirs = (model.double() for model in pair(tmp_path, options))
    images = torch.randn(batch, 3, *size, dtype=torch.float64)
    logits, wanted = ours(images), theirs(images)
    direction = torch.randn_like(wanted)
    (logits * direction).sum().backward()
    (wanted * direction).sum().backward()
    assert gradient_error(ours, theirs, TIMM_NAMED if options else TIMM) < 1e-8


def test_whole_forward(tmp_path: Path) -> None:
    theirs = small()
    ours = load(write(theirs.state_dict(), tmp_path / "timm.safetensors"), window=7)
    images = torch.randn(2, 3, 97, 131)
    with torch.no_grad():
        assert relative_error(ours(images), theirs(images)) < 1e-5


@pytest.mark.parametrize("window", [5, 8])
def test_other_windows_and_grey_images(tmp_path: Path, window: int) -> None:
    theirs = small(window, in_chans=1, down_kernel_size=3)
    ours = load(write(theirs.state_dict(), tmp_path / "timm.safetensors"), window=window)
    assert ours.config.backbone.in_channels == 1
    assert ours.preprocessing.channels == 1
    compare(ours, theirs, torch.randn(2, 1, 75, 110))


@pytest.mark.parametrize("size", [(224, 224), (97, 131)], ids=str)
def test_davit_tiny(tmp_path: Path, size: tuple[int, int]) -> None:
    theirs = randomise(timm.create_model("davit_tiny"))
    ours = load(write(theirs.state_dict(), tmp_path / "timm.safetensors"))
    compare(ours, theirs, torch.randn(1, 3, *size))


def test_features_only(tmp_path: Path) -> None:
    theirs = randomise(timm.create_model("davit_tiny", features_only=True, **{**SMALL, "window_size": 7}))
    ours = load(write(theirs.state_dict(), tmp_path / "timm.safetensors"), window=7)
    assert isinstance(ours, DaViT)
    images = torch.randn(2, 3, 97, 131)
    with torch.no_grad():
        for mine, other in zip(ours(images), theirs(images), strict=True):
            assert relative_error(mine, other) < 1e-5


@pytest.mark.parametrize("name", ["davit_tiny", "davit_small", "davit_base", "davit_base_fl", "davit_huge_fl"])
def test_shapes_of_the_published(name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name)
    found = locate(theirs.state_dict())
    ours = found.format.to_ours(found.tensors)
    variants = {"davit_base_fl": "davit_base_florence2", "davit_huge_fl": "davit_huge_florence2"}
    with torch.device("meta"):
        wanted = DaViT(VARIANTS[variants.get(name, name)]).state_dict()
    tower = {key.removeprefix("backbone."): tensor.shape for key, tensor in ours.items() if "stages" in key}
    assert tower == {key: tensor.shape for key, tensor in wanted.items()}
