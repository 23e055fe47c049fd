"""Our model against the hand-written transcription of the paper, in float64."""

import numpy as np
import pytest
import timm
import torch

import paper_transcription as paper
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.weights.convert.rename import Format
from davit.weights.convert.timm import TIMM, TIMM_NAMED
from foreign import HEADS, randomise

WIDTHS, DEPTHS = (32, 64, 96, 128), (1, 1, 1, 1)


def as_arrays(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in state.items()}


def error(found: torch.Tensor, wanted: np.ndarray) -> float:
    return float(np.abs(found.numpy() - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize(
    ("size", "window", "merge_kernel", "scale"),
    [
        ((32, 32), 7, 2, "channels"),
        ((61, 45), 7, 2, "channels"),
        ((61, 45), 12, 3, "tokens"),
        ((29, 90), 3, 3, "channels"),
        ((33, 50), 4, 2, "tokens"),
    ],
    ids=str,
)
def test_reference(size: tuple[int, int], window: int, merge_kernel: int, scale: str) -> None:
    config = DaViTConfig(
        widths=WIDTHS, depths=DEPTHS, window=window, merge_kernel=merge_kernel, channel_scale=scale, in_channels=2
    )
    model = randomise(Classifier(ClassifierConfig(backbone=config, num_classes=5))).double()
    images = torch.randn(1, 2, *size, dtype=torch.float64)
    with torch.no_grad():
        maps, logits = model.backbone(images), model(images)
    tower, whole = as_arrays(model.backbone.state_dict()), as_arrays(model.state_dict())
    for i, image in enumerate(images.numpy()):
        wanted = paper.backbone(image.transpose(1, 2, 0), tower, DEPTHS, window, scale)
        for found, expected in zip(maps, wanted, strict=True):
            assert error(found[i].permute(1, 2, 0), expected) < 1e-9
        assert error(logits[i], paper.classify(wanted[-1], whole)) < 1e-9


@pytest.mark.parametrize("florence", [False, True])
def test_timm_agrees_too(florence: bool) -> None:
    """A third opinion on both sides: the transcription equals timm through our tables."""
    options = {"embed_dims": WIDTHS, "depths": DEPTHS, "num_heads": HEADS, "num_classes": 5}
    if florence:
        options |= {"window_size": 12, "down_kernel_size": 3, "channel_attn_v2": True, "named_blocks": True}
    theirs = randomise(timm.create_model("davit_tiny", **options)).double()
    format: Format = TIMM_NAMED if florence else TIMM
    weights = as_arrays(format.to_ours(theirs.state_dict()))
    tower = {key.removeprefix("backbone."): value for key, value in weights.items()}
    image = torch.randn(1, 3, 50, 37, dtype=torch.float64)
    with torch.no_grad():
        logits = theirs(image)[0]
    window, scale = (12, "tokens") if florence else (7, "channels")
    maps = paper.backbone(image[0].permute(1, 2, 0).numpy(), tower, DEPTHS, window, scale)
    assert error(logits, paper.classify(maps[-1], weights)) < 1e-9
