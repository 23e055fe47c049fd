"""Attention maps and drawing."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from davit.explain import drawing
from davit.explain.attention import (
    channel_attention_maps,
    channel_weights,
    received_attention_maps,
    record_attention,
    window_attention_maps,
    window_weights,
)
from davit.models.attention import ChannelAttention, WindowAttention
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.davit import DaViT
from davit.models.windows import merge_windows
from davit.preprocessing import Preprocessing

CONFIG = DaViTConfig(widths=(16, 16, 32, 32), depths=(1, 1, 2, 1), head_width=8, window=4)


def make_backbone(**changes: object) -> DaViT:
    torch.manual_seed(0)
    return DaViT(CONFIG.override(**changes)).eval()


def hooked(model: nn.Module, image: Tensor, kind: type[nn.Module]) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Every attention module of a kind with its real input and output."""
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    modules = [module for module in model.modules() if isinstance(module, kind)]
    handles = [m.register_forward_hook(lambda m, args, output: seen.append((m, args[0], output))) for m in modules]
    with torch.no_grad():
        model(image[None])
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("size", [(64, 64), (50, 70)])
def test_window_weights_recompose_the_real_output(size: tuple[int, int]) -> None:
    model, image = make_backbone(), torch.randn(3, *size)
    for module, x, output in hooked(model, image, WindowAttention):
        with torch.no_grad():
            weights, v = window_weights(module, x)
            mixed = module.proj((weights @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        again = merge_windows(mixed, module.window, x.shape[1], x.shape[2])
        torch.testing.assert_close(again, output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", ["channels", "tokens"])
def test_channel_weights_recompose_the_real_output(scale: str) -> None:
    model, image = make_backbone(channel_scale=scale), torch.randn(3, 50, 70)
    for module, x, output in hooked(model, image, ChannelAttention):
        with torch.no_grad():
            affinity, v = channel_weights(module, x)
            again = module.proj((v @ affinity.mT).transpose(1, 2).flatten(2)).view_as(output)
        torch.testing.assert_close(affinity.sum(-1), torch.ones(affinity.shape[:-1]))
        torch.testing.assert_close(again, output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("point", [(0, 0), (49, 69), (20, 33)])
def test_window_maps_are_the_row_of_the_query(point: tuple[int, int]) -> None:
    model, image = make_backbone(), torch.randn(3, 50, 70)
    maps = window_attention_maps(model, image, point)
    last = [each for i, each in enumerate(hooked(model, image, WindowAttention)) if i != 2]  # stage 3 has two blocks
    for stage, (seen, (module, x, _)) in enumerate(zip(maps, last, strict=True)):
        H, W, P = x.shape[1], x.shape[2], module.window
        row, column = point[0] // (4 * 2**stage), point[1] // (4 * 2**stage)
        assert seen.query == (row, column)
        assert seen.heads.shape == (x.shape[3] // 8, H, W)
        torch.testing.assert_close(seen.heads.sum((1, 2)) + seen.padding, torch.ones(len(seen.heads)))
        top, left, bottom, right = seen.window
        assert top <= row < bottom <= H
        assert left <= column < right <= W
        outside = seen.heads.clone()
        outside[:, top:bottom, left:right] = 0
        assert not outside.any()
        weights, _ = window_weights(module, x)
        window = row // P * (-(-W // P)) + column // P
        tile = weights[window, :, row % P * P + column % P].view(-1, P, P)[:, : bottom - top, : right - left]
        torch.testing.assert_close(seen.heads[:, top:bottom, left:right], tile)


def test_padding_takes_a_share_only_where_windows_are_padded() -> None:
    model = make_backbone()
    whole = window_attention_maps(model, torch.randn(3, 128, 128), (5, 5))
    assert all(not seen.padding.any() for seen in whole)
    padded = window_attention_maps(model, torch.randn(3, 72, 72), (71, 71))
    assert (padded[0].padding > 0).all()


def test_received_attention_is_the_mean_over_queries_and_heads() -> None:
    model, image = make_backbone(), torch.randn(3, 50, 70)
    stage = record_attention(model, image).windows[0]
    received = received_attention_maps(model, image)[0]
    top, left, bottom, right = stage.at(12, 17).window
    rows = [stage.at(row, column).mean for row in range(top, bottom) for column in range(left, right)]
    expected = torch.stack(rows).mean(0)[top:bottom, left:right]
    torch.testing.assert_close(received[top:bottom, left:right], expected)
    assert received.shape == stage.side


def test_channel_maps_are_what_the_module_mixes() -> None:
    model, image = make_backbone(), torch.randn(3, 50, 70)
    last = hooked(model, image, ChannelAttention)[-1]
    stage = channel_attention_maps(model, image)[-1]
    torch.testing.assert_close(stage.affinity.sum(-1), torch.ones(stage.affinity.shape[:-1]))
    attended = stage.attended.flatten(0, 1).permute(1, 2, 0)  # (H, W, C)
    with torch.no_grad():
        torch.testing.assert_close(last[0].proj(attended), last[2][0], atol=1e-5, rtol=1e-5)
    energy = stage.attended[1].square().mean((1, 2))
    assert stage.energetic(1, 3) == energy.argsort(descending=True)[:3].tolist()


def test_one_kind_of_attention_gives_only_its_maps() -> None:
    image = torch.randn(3, 32, 32)
    windows = record_attention(make_backbone(attentions=("window",)), image)
    assert (len(windows.windows), len(windows.channels)) == (4, 0)
    channels = record_attention(make_backbone(attentions=("channel",)), image)
    assert (len(channels.windows), len(channels.channels)) == (0, 4)


def test_the_model_is_left_as_it_was() -> None:
    model = Classifier(ClassifierConfig(backbone=CONFIG, num_classes=3)).eval()
    image = torch.randn(3, 32, 32)
    with torch.no_grad():
        before = model(image[None])
    record_attention(model, image)
    with torch.no_grad():
        assert torch.equal(model(image[None]), before)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_first_and_last_block_differ_and_a_missing_one_is_refused() -> None:
    model, image = make_backbone(), torch.randn(3, 64, 64)
    first = record_attention(model, image, [(2, 0)]).windows[0].weights
    assert not torch.allclose(first, record_attention(model, image, "last").windows[2].weights)
    with pytest.raises(ValueError, match="stage 3 has dual blocks 1 to 2, and no block 3"):
        record_attention(model, image, [(2, 2)])
    with pytest.raises(ValueError, match="stage 1 has one dual block, and no block 2"):
        record_attention(model, image, [(0, 1)])
    with pytest.raises(ValueError, match="stages 1 to 4, and no stage 5"):
        record_attention(model, image, [(4, 0)])


def test_training_mode_and_points_outside_are_refused() -> None:
    model, image = make_backbone(), torch.randn(3, 32, 32)
    with pytest.raises(ValueError, match="outside the image"):
        window_attention_maps(model, image, (32, 0))
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        record_attention(model.train(), image)


def test_palette_gets_lighter_in_equal_steps() -> None:
    colours = drawing.palette(64) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    lms = linear @ np.array([[0.4122, 0.2119, 0.0883], [0.5363, 0.6807, 0.2817], [0.0514, 0.1074, 0.6300]])
    lightness = np.cbrt(lms) @ np.array([0.2105, 0.7936, -0.0041])  # L of OKLab
    steps = np.diff(lightness)
    assert steps.min() > 0
    assert np.abs(lightness - np.linspace(lightness[0], lightness[-1], 64)).max() < 0.02


def test_overlay_lights_exactly_the_pixels_of_a_position() -> None:
    values = torch.zeros(3, 3)
    values[2, 0] = 1.0
    drawn = np.asarray(drawing.overlay(Image.new("L", (10, 10), 0), values, stride=4, scale=2))
    assert drawn.shape == (20, 20, 3)
    bright = drawn.sum(2) > 300
    assert bright[16:20, 0:8].all()
    assert bright.sum() == 4 * 8  # rows 20 to 24 hang over the picture


def test_small_pictures_grow_by_whole_pixels() -> None:
    image = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8))
    grown = np.asarray(drawing.enlarge(image, 7))
    assert grown.shape == (6, 6)
    assert set(np.unique(grown)) == {0, 255}


def test_sprites_survive_the_file() -> None:
    values = torch.linspace(0, 1, 12).view(3, 4)
    read = Image.open(io.BytesIO(drawing.png_bytes(drawing.sprite(values, 16, see_through=True)))).convert("RGBA")
    pixels = np.asarray(read)
    assert pixels.shape == (3, 4, 4)
    assert pixels[0, 0, 3] == 0
    assert tuple(pixels[2, 3, :3]) == tuple(drawing.palette(16)[-1])


def test_picture_undoes_the_normalisation() -> None:
    preprocessing = Preprocessing(size=(8, 8), crop=1.0)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(drawing.picture(preprocessing(image), preprocessing)), np.asarray(image))
    assert drawing.picture(torch.randn(4, 5, 6), None).size == (6, 5)


def test_contact_sheet_fills_rows() -> None:
    sheet = drawing.contact_sheet([Image.new("L", (5, 4), 255)] * 5, columns=3, gap=1)
    assert sheet.size == (17, 9)
