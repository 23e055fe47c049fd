"""Our backbone, loaded through the converters, against transformers' Florence-2 vision tower."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import BartConfig, Florence2Config, Florence2ForConditionalGeneration, Florence2VisionConfig
from transformers.models.florence2.modeling_florence2 import Florence2VisionBackbone

from davit.models.davit import DaViT
from davit.weights.convert.florence2 import FLORENCE2_NATIVE
from davit.weights.load import load, read
from foreign import DEPTHS, GRADIENT_CASES, HEADS, SIZES, WIDTHS, gradient_error, randomise, relative_error, write


def vision_config(**changes: object) -> Florence2VisionConfig:
    small = {"embed_dim": WIDTHS, "depths": DEPTHS, "num_heads": HEADS, "num_groups": HEADS, "drop_path_rate": 0.0}
    return Florence2VisionConfig(**{**small, "projection_dim": 32, **changes})


def tower(attention: str = "sdpa") -> Florence2VisionBackbone:
    model = Florence2VisionBackbone._from_config(vision_config(), attn_implementation=attention)
    return randomise(model)


def maps_of(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The output of each stage's last block."""
    maps: list[Tensor] = []
    hooks = [blocks[-1].register_forward_hook(lambda *parts: maps.append(parts[2])) for blocks in model.blocks]
    model(images)
    for hook in hooks:
        hook.remove()
    return maps


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tower(tmp_path: Path, size: tuple[int, int], batch: int) -> None:
    theirs = tower()
    ours = load(write(theirs.state_dict(), tmp_path / "tower.safetensors"), window=12)
    assert isinstance(ours, DaViT)
    assert ours.config.channel_scale == "tokens"
    images = torch.randn(batch, 3, *size)
    with torch.no_grad():
        for found, wanted in zip(ours(images), maps_of(theirs, images), strict=True):
            assert relative_error(found, wanted) < 1e-5


@pytest.mark.parametrize(("batch", "size"), GRADIENT_CASES, ids=str)
def test_gradients(tmp_path: Path, size: tuple[int, int], batch: int) -> None:
    theirs = tower()
    ours = load(write(theirs.state_dict(), tmp_path / "tower.safetensors"), window=12).double()
    theirs.double()
    images = torch.randn(batch, 3, *size, dtype=torch.float64)
    mine, other = ours(images)[-1], maps_of(theirs, images)[-1]
    direction = torch.randn_like(other)
    (mine * direction).sum().backward()
    (other * direction).sum().backward()
    assert gradient_error(ours, theirs, FLORENCE2_NATIVE) < 1e-8


def test_eager_attention(tmp_path: Path) -> None:
    theirs = tower("eager")
    ours = load(write(theirs.state_dict(), tmp_path / "tower.safetensors"), window=12)
    images = torch.randn(1, 3, 97, 131)
    with torch.no_grad():
        assert relative_error(ours(images)[-1], maps_of(theirs, images)[-1]) < 1e-5


def test_inside_the_whole_model(tmp_path: Path) -> None:
    text = BartConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    whole = Florence2ForConditionalGeneration(Florence2Config(text_config=text, vision_config=vision_config()))
    randomise(whole)
    whole.save_pretrained(tmp_path)
    weights = read(tmp_path, window=12)
    assert weights.format == "florence2-native"
    assert weights.left
    assert all("vision_tower" not in key for key in weights.left)
    assert len(weights.tensors) + len(weights.left) == len(_saved_keys(tmp_path))
    ours = load(tmp_path, window=12)
    images = torch.randn(1, 3, 97, 131)
    with torch.no_grad():
        assert relative_error(ours(images)[-1], maps_of(whole.model.vision_tower, images)[-1]) < 1e-5


def _saved_keys(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return list(file.keys())
