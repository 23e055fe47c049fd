"""Text towers of open_clip's checkpoints, and image towers of image-text models of others."""

from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import TextTransformer

import davit
from colour_texts import fresh, saved
from davit.models.clip import ImageTextModel
from davit.models.clip_config import ImageTextHead, TextConfig
from davit.tokens import tokenize
from davit.train.build import build_model
from davit.weights.convert.florence2 import FLORENCE2
from davit.weights.text_tower import read_text_tower
from runs import tiny_dense_recipe

HEAD = ImageTextHead(embedding=32, text=TextConfig(context=20, width=128, heads=2, layers=3))


def theirs() -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformer(context_length=20, width=128, heads=2, layers=3, output_dim=32).eval()


@pytest.mark.parametrize("prefix", ["", "text.", "module."])
def test_a_run_starts_from_open_clips_text_tower(tmp_path: Path, prefix: str) -> None:
    tower = theirs()
    state = {f"{prefix}{name}": value for name, value in tower.state_dict().items()}
    others = {
        "visual.conv1.weight": torch.zeros(3, 3),
        "logit_scale": torch.zeros(()),
        f"{prefix}attn_mask": torch.zeros(2),
    }
    torch.save({"state_dict": state | others}, tmp_path / "open_clip.pt")
    settings = {
        "model__text_init": str(tmp_path / "open_clip.pt"), "model__head__embedding": "32",
        "model__head__text__width": "128", "model__head__text__layers": "3", "model__head__text__context": "20",
    }  # fmt: skip
    notes: list[str] = []
    model = build_model(tiny_dense_recipe("digits.contrastive", **settings), (), notes=notes)
    assert isinstance(model, ImageTextModel)
    tokens = tokenize(["a three", "a seven above an eight"], 20)
    torch.testing.assert_close(model.text(tokens), tower(tokens), rtol=1e-5, atol=1e-6)
    assert "gives all" in notes[0]
    assert "text tower" in notes[0]


def test_a_built_in_model_of_open_clip_fits_the_recipes_default(tmp_path: Path) -> None:
    """ViT-B-32 as open_clip builds it: towers at the top of the state dict."""
    model = open_clip.create_model("ViT-B-32", pretrained=None, precision="fp16")
    torch.save(model.state_dict(), tmp_path / "vit.pt")
    tensors = read_text_tower(tmp_path / "vit.pt", ImageTextHead())
    assert tensors["token_embedding.weight"].shape == (49408, 512)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_the_text_tower_of_our_own_models(tmp_path: Path) -> None:
    model = fresh()
    path = saved(model, tmp_path / "ours.safetensors")
    found = read_text_tower(path, model.config.head)
    assert all(torch.equal(found[name], value) for name, value in model.text.state_dict().items())
    with pytest.raises(ValueError, match=r"heads=2 "):
        read_text_tower(path, ImageTextHead(embedding=16, text=TextConfig(context=12, width=32, heads=1, layers=1)))


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    state = theirs().state_dict()
    torch.save(state, tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=r"model.head.text.width=128 .*context=20"):
        read_text_tower(tmp_path / "whole.pt", ImageTextHead())
    for name, damage in (
        ("none", {"visual.weight": torch.zeros(2)}),
        ("partly", {k: v for k, v in state.items() if "mlp" not in k}),
        ("other", state | {"transformer.resblocks.0.gate.weight": torch.zeros(2)}),
    ):
        torch.save(damage, tmp_path / f"{name}.pt")
        with pytest.raises(ValueError, match=f"{name}.pt"):
            read_text_tower(tmp_path / f"{name}.pt", HEAD)
    with pytest.raises(ValueError, match="not there"):
        read_text_tower(tmp_path / "gone.pt", HEAD)
    davit.save(davit.create_model("davit_pico", num_classes=3), tmp_path / "classifier.safetensors")
    with pytest.raises(ValueError, match="classifier, which has no text tower"):
        read_text_tower(tmp_path / "classifier.safetensors", HEAD)
    settings = {"model__text_init": str(tmp_path / "whole.pt")}
    with pytest.raises(ValueError, match="for image-text models"):
        build_model(tiny_dense_recipe("digits.segmentation", **settings), ("a", "b"))


@pytest.mark.parametrize("prefix", ["image_encoder.", "vision_tower."])
def test_image_text_models_of_others_give_their_image_tower(tmp_path: Path, prefix: str) -> None:
    """As UniCL's own code calls it, and as Florence-2 does, beside a language model."""
    torch.manual_seed(0)
    tower = davit.create_backbone("davit_base_florence2", widths=(32, 32, 64, 64), depths=(1, 1, 1, 1))
    state = {f"{prefix}{name}": value for name, value in FLORENCE2.from_ours(tower.state_dict()).items()}
    others = {
        "lang_encoder.token_embedding.weight": torch.zeros(4, 4), "text_projection": torch.zeros(4, 4),
        "image_projection": torch.zeros(4, 4), "logit_scale": torch.zeros(()),
    }  # fmt: skip
    torch.save(state | others, tmp_path / "unicl.pt")
    found = davit.load(tmp_path / "unicl.pt", window=12, channel_scale="tokens")
    for name, value in tower.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
