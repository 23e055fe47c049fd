"""The segmenter: transformers' port of mmsegmentation's heads on the same weights, the paper's sizes, and training."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from davit.models.class_map import class_map, pixel_logits
from davit.models.config import DaViTConfig
from davit.models.segmenter_config import SegmenterConfig, UPerNetHead
from davit.models.upernet import BatchNorm, ChannelDropout, Segmenter
from davit.models.variants import VARIANTS
from davit.weights.convert.mmseg import UPERNET
from foreign import randomise, relative_error

TINY = DaViTConfig(widths=(32, 64, 96, 128), depths=(1, 1, 1, 1))
HEAD = UPerNetHead(channels=24, auxiliary_channels=20, dropout=0.0)


def segmenter(head: UPerNetHead = HEAD, num_classes: int = 7) -> Segmenter:
    """A segmenter none of whose tensors is what it was built with."""
    model = randomise(Segmenter(SegmenterConfig(backbone=TINY, head=head, num_classes=num_classes)))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0.0, 0.3)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
        else:
            buffer.random_(1, 99)
    assert isinstance(model, Segmenter)
    return model


def foreign(tensors: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """One head in transformers' spelling, which differs from mmsegmentation's in two words."""
    theirs = UPERNET.from_ours(tensors)
    return {
        key.removeprefix(head).replace(".bn.", ".batch_norm.").replace("conv_seg", "classifier"): tensor
        for key, tensor in theirs.items()
        if key.startswith(head)
    }


def peers(model: Segmenter) -> tuple[UperNetHead, UperNetFCNHead]:
    """Transformers' heads with the weights of ours."""
    config = UperNetConfig(
        hidden_size=HEAD.channels, auxiliary_channels=HEAD.auxiliary_channels, num_labels=model.config.num_classes
    )
    head, auxiliary = UperNetHead(config, TINY.widths), UperNetFCNHead(config, TINY.widths)
    head.load_state_dict(foreign(model.state_dict(), "decode_head."))
    auxiliary.load_state_dict(foreign(model.state_dict(), "auxiliary_head."))
    return head.to(next(model.parameters()).dtype), auxiliary.to(next(model.parameters()).dtype)


def normed_maps(model: Segmenter, images: Tensor) -> list[Tensor]:
    """The four maps under the heads, layer norm over channels written out."""
    maps = []
    for norm, x in zip(model.norms, model.backbone(images), strict=True):
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        weight, bias = norm.weight[:, None, None], norm.bias[:, None, None]
        maps.append(((x - mean) * (variance + 1e-5).rsqrt() * weight + bias).contiguous())
    return maps


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("size", [(97, 131), (200, 260), (32, 64)], ids=str)
def test_heads_equal_transformers(size: tuple[int, int], training: bool) -> None:
    model = segmenter().train(training)
    others = [peer.train(training) for peer in peers(model)]
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = normed_maps(model, images)
        found = model(images)
        for mine, peer, stride in zip(found, others, (4, 16), strict=True):
            assert mine.shape == (2, 7, -(-size[0] // stride), -(-size[1] // stride))
            assert relative_error(mine, peer(maps)) < 1e-5
    for prefix, peer in zip(("decode_head.", "auxiliary_head."), others, strict=True):
        mine = foreign(model.state_dict(), prefix)  # training moved the running statistics of both alike
        for key, wanted in peer.state_dict().items():
            assert relative_error(mine[key].double(), wanted.double()) < 1e-5, key


@pytest.mark.parametrize("size", [(97, 131), pytest.param((200, 260), marks=pytest.mark.slow)], ids=str)
def test_gradients_equal_transformers(size: tuple[int, int]) -> None:
    model = segmenter().double().train()
    others = peers(model)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    found, wanted = model(images), [peer.train()(normed_maps(model, images)) for peer in others]
    directions = [torch.randn_like(logits) for logits in found]
    backward(sum((x * d).sum() for x, d in zip(found, directions, strict=True)))
    mine = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(mine) == len(list(model.parameters()))
    tower = {name: gradient.clone() for name, gradient in mine.items() if name.startswith("backbone.")}
    model.zero_grad()
    backward(sum((x * d).sum() for x, d in zip(wanted, directions, strict=True)))
    for prefix, peer in zip(("decode_head.", "auxiliary_head."), others, strict=True):
        heads = foreign({k: v for k, v in mine.items() if not k.startswith(("backbone.", "norms."))}, prefix)
        for name, parameter in peer.named_parameters():
            assert (heads[name] - parameter.grad).abs().max() < 1e-8 * (1 + parameter.grad.abs().max()), name
    largest = max(gradient.abs().max() for gradient in tower.values())
    for name, gradient in tower.items():
        assert (gradient - model.get_parameter(name).grad).abs().max() < 1e-8 * largest, name


def backward(total: Tensor | int) -> None:
    assert isinstance(total, Tensor)
    total.backward()


@pytest.mark.parametrize(
    ("variant", "millions", "billions"),
    [("davit_tiny", 60, 940), ("davit_small", 81, 1030), ("davit_base", 121, 1175)],
)
def test_parameters_and_macs_of_the_paper(variant: str, millions: int, billions: int) -> None:
    """Multiply-adds at 512x2048 without the auxiliary head, which mmsegmentation's counter leaves out."""
    with torch.device("meta"):
        model = Segmenter(SegmenterConfig(backbone=VARIANTS[variant])).eval()
        images = torch.empty(1, 3, 512, 2048)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
    model.auxiliary = nn.Identity()  # type: ignore[bad-assignment]
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert counter.get_total_flops() / 2e9 == pytest.approx(billions, rel=0.005)


def test_a_single_picture_trains_where_batch_norm_has_one_value() -> None:
    """Its grid of 1x1 is normed by the running statistics, as in evaluation; all else by its own."""
    model = segmenter(UPerNetHead(channels=16, pool_sizes=(1,), dropout=0.0)).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    out = model(torch.randn(1, 3, 96, 64))
    (out.logits.square().sum() + out.auxiliary.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.head.pooling.pooled[0].conv.weight.grad.abs().max() > 0
    for name, buffer in model.named_buffers():
        assert buffer.isfinite().all()
        assert torch.equal(buffer, before[name]) == name.startswith("head.pooling.pooled.0."), name

    norm = BatchNorm(5).train()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    one = torch.randn(1, 5, 1, 1)
    assert torch.equal(norm(one), norm.eval()(one))
    plain = nn.BatchNorm2d(5).train()
    plain.load_state_dict(norm.state_dict())
    two = torch.randn(1, 5, 1, 2)
    assert torch.equal(norm.train()(two), plain(two))
    with pytest.raises(ValueError, match="more than 1 value"):
        plain(one)  # else our own norm would not be needed


def test_an_image_smaller_than_the_grids_trains() -> None:
    model = segmenter().train()
    out = model(torch.randn(1, 3, 20, 9))
    assert (out.logits.shape, out.auxiliary.shape) == ((1, 7, 5, 3), (1, 7, 2, 1))
    out.logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.head.parameters())


def test_dropout_drops_whole_channels_in_training_only() -> None:
    drop = ChannelDropout(0.25).train()
    kept = drop(torch.ones(200, 50, 2, 3))
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(kept, kept[:, :, :1, :1].expand_as(kept))
    assert (kept == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(drop.eval()(kept), kept)

    x = torch.randn(6, 50, 2, 2)
    drop.train().place(0, 6)
    torch.manual_seed(3)
    whole = drop(x)
    parts = []
    for first in (0, 2, 4):  # dealt out to three processes, which all draw for the whole batch
        drop.place(first, 6)
        torch.manual_seed(3)
        parts.append(drop(x[first : first + 2]))
    assert torch.equal(torch.cat(parts), whole)


def test_first_values_are_mmsegmentations() -> None:
    """Module by module after `to_empty`, as the trainer draws them."""
    with torch.device("meta"):
        model = Segmenter(SegmenterConfig(backbone=TINY, num_classes=20))
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        with torch.no_grad():
            tensor.fill_(77)
    for module in model.modules():
        if list(module.parameters(recurse=False)):
            module.reset_parameters()
    assert all((tensor != 77).any() for tensor in (*model.parameters(), *model.buffers()))
    for name, tensor in (*model.head.state_dict().items(), *model.auxiliary.state_dict().items()):
        if name.endswith("conv.weight"):
            wanted = (2 / (tensor.shape[0] * tensor[0, 0].numel())) ** 0.5
            assert tensor.std().item() == pytest.approx(wanted, rel=0.05), name
        elif name == "classifier.weight":
            assert tensor.std().item() == pytest.approx(0.01, rel=0.05)
        else:
            one = name.endswith(("norm.weight", "running_var"))
            assert torch.equal(tensor, torch.full_like(tensor, int(one))), name
    fresh = Segmenter(model.config)
    assert fresh.head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.eval()(torch.randn(1, 3, 64, 64)).logits.isfinite().all()


def test_what_cannot_be_built_is_refused() -> None:
    for num_classes in (0, 256):
        with pytest.raises(ValueError, match=f"1 to 255, got {num_classes}"):
            SegmenterConfig(backbone=TINY, num_classes=num_classes)
    for wrong in ({"channels": 0}, {"auxiliary_channels": 0}, {"pool_sizes": ()}, {"pool_sizes": (1, 0)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            UPerNetHead(**wrong)
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1.0"):
        UPerNetHead(dropout=1.0)


# Names from the authors' config under mmcv's ConvModule.
SPELLING = {
    "backbone.patch_embeds.3.proj", "backbone.main_blocks.2.0.1.attn.qkv", "backbone.norm0", "backbone.norm3",
    "decode_head.psp_modules.0.1.conv", "decode_head.psp_modules.3.1.bn",
    "decode_head.bottleneck.conv", "decode_head.bottleneck.bn",
    "decode_head.lateral_convs.2.conv", "decode_head.lateral_convs.0.bn",
    "decode_head.fpn_convs.2.conv", "decode_head.fpn_convs.0.bn",
    "decode_head.fpn_bottleneck.conv", "decode_head.fpn_bottleneck.bn", "decode_head.conv_seg",
    "auxiliary_head.convs.0.conv", "auxiliary_head.convs.0.bn", "auxiliary_head.conv_seg",
}  # fmt: skip


@pytest.mark.parametrize("pools", [(1, 2, 3, 6), (1, 2)], ids=str)
def test_official_checkpoints_convert_both_ways_to_the_bit(pools: tuple[int, ...]) -> None:
    model = segmenter(UPerNetHead(channels=16, auxiliary_channels=8, pool_sizes=pools))
    state = model.state_dict()
    theirs = UPERNET.from_ours(state)
    assert len(theirs) == len(state)
    if len(pools) == 4:
        assert {key.rpartition(".")[0] for key in theirs} >= SPELLING
    assert {key.partition(".")[0] for key in theirs} == {"backbone", "decode_head", "auxiliary_head"}
    back = UPERNET.to_ours(theirs)
    assert set(back) == set(state)
    assert all(torch.equal(back[key], value) and back[key].dtype == value.dtype for key, value in state.items())
    model.load_state_dict(back)


def test_unknown_tensors_of_a_checkpoint_are_named() -> None:
    theirs = UPERNET.from_ours(segmenter().state_dict())
    for extra in ("decode_head.conv_seg.running_sum", "decode_head.fpn_convs.3.conv.weight", "neck.0.weight"):
        with pytest.raises(ValueError, match=f"1 of .*{extra}"):
            UPERNET.to_ours(theirs | {extra: torch.ones(1)})
    with pytest.raises(ValueError, match=r"1 of .*relative_position"):
        UPERNET.to_ours(theirs | {"backbone.main_blocks.0.0.0.attn.relative_position": torch.ones(1)})
    with pytest.raises(ValueError, match="without a place"):
        UPERNET.from_ours(segmenter().state_dict() | {"mask_head.conv.weight": torch.ones(1)})


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (63, 95), (61, 66), (49, 33), (35, 34)])
def test_a_logit_lies_on_its_pixels_whatever_the_size(height, width, stride):
    """A ramp along each axis stays where it is, though the image ends within a square of pixels."""
    rows, columns = torch.arange(-(-height // stride)) + 0.5, torch.arange(-(-width // stride)) + 0.5
    logits = torch.stack(torch.meshgrid(rows * stride, columns * stride, indexing="ij"))
    found = pixel_logits(logits[None], (height, width))[0]
    wanted = torch.stack(torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij"))
    inner = [slice(stride // 2, stride * (len(places) - 1) + stride // 2) for places in (rows, columns)]
    assert found.shape == wanted.shape
    torch.testing.assert_close(found[:, *inner], wanted[:, *inner], atol=1e-4, rtol=0)


def test_a_map_of_any_other_size_spans_the_image():
    logits = torch.randn(2, 3, 10, 7)
    assert pixel_logits(logits, (64, 64)).equal(F.interpolate(logits, (64, 64), mode="bilinear"))


def test_large_pictures_are_mapped_some_classes_at_a_time_with_the_same_result(monkeypatch) -> None:
    logits = torch.randn(11, 13, 17)
    for resized, size in (((52, 68), (52, 68)), ((52, 68), (75, 101)), ((50, 65), (50, 65)), ((49, 66), (75, 101))):
        large = F.interpolate(logits[None], (52, 68), mode="bilinear", align_corners=False)
        large = large[..., : resized[0], : resized[1]]
        large = large if resized == size else F.interpolate(large, size, mode="bilinear", align_corners=False)
        for values in (1, 3 * size[0] * size[1], 1 << 26):  # one class, three and all of them at a time
            monkeypatch.setattr("davit.models.class_map._VALUES", values)
            assert class_map(logits, resized, size).equal(large[0].argmax(0).to(torch.uint8))
