"""The backbone and classifier: counts, shapes, ablations, precision, checkpointing, compile and export."""

import dataclasses
import math

import pytest
import torch
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

import davit
from davit.models.attention import ChannelAttention, channel_affinity, channel_attention
from davit.models.blocks import ConvPositionEncoding, DropPath
from davit.models.classifier import Classifier
from davit.models.complexity import attention_growth, count_macs, count_parameters, norm_operations
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.davit import DaViT
from davit.models.variants import IMAGE_SIZES, VARIANTS
from davit.models.windows import merge_windows, partition_windows

PUBLISHED_PARAMETERS = {
    "davit_tiny": 28_360_168,
    "davit_small": 49_745_896,
    "davit_base": 87_954_408,
    "davit_large": 196_811_752,
    "davit_large_384": 196_811_752,
    "davit_huge": 362_685_416,
    "davit_giant": 1_437_435_880,
}
PUBLISHED_MACS = {  # as fvcore counts, norms at 5 per element included
    "davit_tiny": 4_540_244_736,
    "davit_small": 8_800_488_192,
    "davit_base": 15_510_430_720,
    "davit_large_384": 102_966_676_992,
}


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_and_macs_agree_three_ways(name):
    size = IMAGE_SIZES[name]
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = davit.create_model(name).eval()
        model(torch.empty(1, 3, size, size))
    assert parameters(model) == count_parameters(VARIANTS[name], 1000)
    assert counter.get_total_flops() == 2 * count_macs(VARIANTS[name], size, size, 1000)
    assert parameters(model.backbone) == count_parameters(VARIANTS[name], None)


def test_published_counts():
    for name, expected in PUBLISHED_PARAMETERS.items():
        assert count_parameters(VARIANTS[name], 1000) == expected
    for name, expected in PUBLISHED_MACS.items():
        size = IMAGE_SIZES[name]
        config = VARIANTS[name]
        assert count_macs(config, size, size, 1000) + norm_operations(config, size, size, 1000) == expected
    assert count_parameters(VARIANTS["davit_base_florence2"], None) == 90_368_000
    assert count_parameters(VARIANTS["davit_huge_florence2"], None) == 360_632_320
    huge_2x2 = VARIANTS["davit_huge"].override(merge_kernel=2)
    giant_2x2 = VARIANTS["davit_giant"].override(merge_kernel=2)
    assert count_parameters(huge_2x2, 1000) == 348_922_856
    assert count_parameters(giant_2x2, 1000) == 1_406_470_120
    assert count_parameters(VARIANTS["davit_tiny"], 21841) == 44_386_897
    assert round(count_macs(VARIANTS["davit_huge"], 512, 512, 1000) / 1e9, 1) == 334.3
    assert round(count_macs(VARIANTS["davit_giant"], 512, 512, 1000) / 1e9, 1) == 1038.0


@pytest.mark.parametrize(("height", "width"), [(97, 131), (200, 260), (384, 384), (33, 512)])
@pytest.mark.parametrize(
    "changes", [{}, {"merge_kernel": 3, "window": 12}, {"attentions": ("channel",)}, {"mlp": False}]
)
def test_macs_of_padded_sizes_equal_the_flop_counter(height, width, changes):
    config = VARIANTS["davit_pico"].override(**changes)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        DaViT(config)(torch.empty(2, 3, height, width))
    assert counter.get_total_flops() == 2 * 2 * count_macs(config, height, width, None)


def test_only_global_attention_is_quadratic():
    small, large = (attention_growth(n, 96, 7, 32) for n in (3136, 4 * 3136))
    assert large["window"] == 4 * small["window"]
    assert large["channel"] == 4 * small["channel"]
    assert large["global"] > 12 * small["global"]


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize(("height", "width"), [(224, 224), (97, 131), (3, 5), (1, 1), (30, 200)])
def test_maps_have_stated_channels_and_strides(small_config, kernel, height, width):
    backbone = DaViT(small_config.override(merge_kernel=kernel)).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(2, 3, height, width))
    for x, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert x.shape == (2, channels, math.ceil(height / stride), math.ceil(width / stride))
        assert x.isfinite().all()


def test_images_of_a_batch_do_not_mix(small_config):
    backbone = DaViT(small_config).eval()
    images = torch.randn(3, 3, 50, 70)
    with torch.no_grad():
        together, alone = backbone(images)[-1], backbone(images[1:2])[-1]
    torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(14, 21), (1, 1), (8, 15), (20, 6)])
def test_windows_come_back(height, width):
    x = torch.randn(3, height, width, 5)
    windows = partition_windows(x, 7)
    assert windows.shape == (3 * math.ceil(height / 7) * math.ceil(width / 7), 49, 5)
    assert torch.equal(windows[0, 0], x[0, 0, 0])
    assert torch.equal(merge_windows(windows, 7, height, width), x)
    assert windows.double().sum().item() == pytest.approx(x.double().sum().item())  # the padding is zeros


@pytest.mark.parametrize("attentions", [("window",), ("channel",), ("window", "channel"), ("channel", "window")])
@pytest.mark.parametrize("conv_position", [True, False])
@pytest.mark.parametrize("mlp", [True, False])
def test_ablations_build_and_hold_only_what_they_name(small_config, attentions, conv_position, mlp):
    config = small_config.override(attentions=attentions, conv_position=conv_position, mlp=mlp)
    model = DaViT(config)
    names = " ".join(model.state_dict())
    assert [name for name, _ in model.stages[0].blocks[0].named_children()] == list(attentions)
    assert ("cpe_attn" in names) is conv_position
    assert ("mlp" in names) is mlp
    assert parameters(model) == count_parameters(config, None)
    sum(x.square().mean() for x in model(torch.randn(1, 3, 40, 40))).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_order_of_attentions_matters(small_config):
    first, second = DaViT(small_config).eval(), DaViT(small_config.override(attentions=("channel", "window"))).eval()
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(first(x)[-1], second(x)[-1], atol=1e-3)


def test_channel_scales_differ_as_stated():
    x = torch.randn(2, 6, 9, 64)
    by_channels, by_tokens = ChannelAttention(64, 32, "channels"), ChannelAttention(64, 32, "tokens")
    by_tokens.load_state_dict(by_channels.state_dict())
    rescaled = ChannelAttention(64, 32, "channels")
    rescaled.load_state_dict(by_channels.state_dict())
    with torch.no_grad():
        for parameter in (rescaled.qkv.weight, rescaled.qkv.bias):
            parameter[:64] *= (32 / 54) ** 0.5
        assert not torch.allclose(by_channels(x), by_tokens(x))
        torch.testing.assert_close(rescaled(x), by_tokens(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [32**-0.5, 36864**-0.5])
def test_channel_logits_are_safe_in_half_precision_at_36864_tokens(dtype, scale):
    q, k, v = (8 * torch.randn(3, 1, 2, 36864, 32) + 4).to(dtype)  # logits reach a million, fp16 ends at 65504
    exact = channel_attention(q.double(), k.double(), v.double(), scale)
    result = channel_attention(q, k, v, scale)
    assert result.dtype == dtype
    assert result.isfinite().all()
    torch.testing.assert_close(result.double(), exact, rtol=0.02, atol=0.05)
    with torch.autocast("cpu", dtype=dtype):  # what a training step under autocast sees
        assert channel_affinity(q, k, scale).dtype == torch.float32


def test_half_precision_forward_stays_finite_with_large_activations(small_config):
    backbone = DaViT(small_config).eval()
    images = 50 * torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        exact = backbone.double()(images.double())
        half = backbone.bfloat16()(images.bfloat16())
    for a, b in zip(exact, half, strict=True):
        assert b.isfinite().all()
        assert (b - a).norm() < 0.1 * a.norm()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (2, 2), (2, 1), (3, 2)])
def test_position_encoding_of_low_maps_is_the_same_convolution_in_training(height, width):
    encoding = ConvPositionEncoding(8).double()
    x = torch.randn(3, height, width, 8, dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (0, 0, 1, 1, 1, 1))
    kernel = encoding.dwconv.weight[:, 0].permute(1, 2, 0)
    expected = (
        x
        + encoding.dwconv.bias
        + sum(padded[:, i : i + height, j : j + width] * kernel[i, j] for i in range(3) for j in range(3))
    )
    gradient = torch.randn_like(x)
    wanted = torch.autograd.grad(expected, tuple(encoding.parameters()), gradient)
    for training in (True, False):
        y = encoding.train(training)(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(torch.autograd.grad(y, tuple(encoding.parameters()), gradient), wanted)


def test_drop_path_rises_per_attention_block():
    rates = DaViTConfig(drop_path=0.22).drop_path_rates()  # 12 attention blocks
    assert rates == pytest.approx([0.02 * i for i in range(12)])
    model = DaViT(DaViTConfig(drop_path=0.22))
    built = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert built == pytest.approx(rates)


def test_drop_path_keeps_the_mean_and_drops_whole_images():
    drop = DropPath(0.25).train()
    y = drop(torch.ones(4000, 3, 3, 2))
    assert set(y.flatten(1).std(1, correction=0).tolist()) == {0.0}
    assert y.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(y), y)


def test_initialisation_is_the_official_one():
    model = davit.create_model("davit_pico")
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif "qkv.weight" in name or "fc1.weight" in name or name == "head.weight":
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
        elif "qkv.bias" in name or "fc1.bias" in name or name == "head.bias":
            assert (parameter == 0).all(), name


def test_gradient_checkpointing_changes_memory_not_numbers(small_config):
    images = torch.randn(2, 3, 64, 64)
    plain = DaViT(small_config).train()
    saving = DaViT(small_config.override(gradient_checkpointing=True)).train()
    saving.load_state_dict(plain.state_dict())
    kept = []
    for model in (plain, saving):
        sizes: list[int] = []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = sum(x.square().mean() for x in model(images))
        kept.append(sum(sizes))
        loss.backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert kept[1] < kept[0] / 3


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_compiles_without_graph_break(small_config, gradient_checkpointing):
    torch._dynamo.reset()
    config = small_config.override(gradient_checkpointing=gradient_checkpointing)
    model = Classifier(ClassifierConfig(backbone=config, num_classes=5)).train()
    images = torch.randn(2, 3, 50, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images))
    compiled(images).sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"merge_kernel": 3, "channel_scale": "tokens", "window": 12, "gradient_checkpointing": True}]
)
def test_exports_with_free_batch_and_size(changes):
    model = davit.create_model("davit_tiny", num_classes=10, **changes).eval()
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    exported = torch.export.export(model, (torch.randn(2, 3, 97, 131),), dynamic_shapes=(free,)).module()
    for shape in [(1, 3, 224, 224), (3, 3, 200, 260), (2, 3, 97, 131), (4, 3, 64, 33), (1, 3, 384, 512)]:
        images = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(exported(images), model(images), rtol=1e-5, atol=1e-6)


def test_errors_name_the_value_and_the_way_out():
    with pytest.raises(ValueError, match=r"unknown variant 'davit_tinny'.*'davit_tiny'"):
        davit.create_model("davit_tinny")
    with pytest.raises(ValueError, match=r"unknown field of DaViTConfig 'windw'.*'window'"):
        davit.create_model("davit_tiny", windw=8)
    with pytest.raises(ValueError, match="multiples of head_width=32"):
        davit.create_backbone("davit_tiny", widths=(90, 192, 384, 768))
    with pytest.raises(ValueError, match="merge_kernel must be 2 or 3"):
        davit.create_backbone("davit_tiny", merge_kernel=4)
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        davit.create_model("davit_tiny", num_classes=0)
    with pytest.raises(ValueError, match="attentions"):
        DaViTConfig(attentions=("global",))


def test_list_models_takes_a_pattern():
    assert davit.list_models("*florence2") == ["davit_base_florence2", "davit_huge_florence2"]
    assert len(davit.list_models()) == 11
    assert davit.list_models("none*") == []


def test_config_is_frozen(small_config):
    with pytest.raises(dataclasses.FrozenInstanceError):
        small_config.window = 9
