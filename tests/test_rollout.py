"""Attention rollout, against plain N x N matrices in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davit.explain.attention import record_attention
from davit.explain.rollout import attention_rollout, one_hot
from davit.models.attention import ChannelAttention, WindowAttention
from davit.models.config import DaViTConfig
from davit.models.davit import DaViT
from foreign import randomise

CONFIG = DaViTConfig(widths=(16, 16, 32, 32), depths=(1, 1, 2, 1), head_width=8, window=4)
SIZE = (97, 131)


def fresh(**changes: object) -> DaViT:
    torch.manual_seed(0)
    model = DaViT(CONFIG.override(**changes)).double()
    randomise(model)
    return model


def inputs(model: DaViT, image: Tensor) -> dict[nn.Module, Tensor]:
    seen: dict[nn.Module, Tensor] = {}
    kinds = (WindowAttention, ChannelAttention)
    modules = [module for module in model.modules() if isinstance(module, kinds)]
    handles = [m.register_forward_pre_hook(lambda m, args: seen.__setitem__(m, args[0][0])) for m in modules]
    with torch.no_grad():
        model(image[None])
    for handle in handles:
        handle.remove()
    return seen


def window_matrix(module: WindowAttention, x: Tensor) -> Tensor:
    """(I + A) / 2, token by token."""
    H, W, C = x.shape
    P, heads, D = module.window, C // module.head_width, module.head_width
    matrix = torch.zeros(H * W, H * W, dtype=torch.float64)
    for row in range(H):
        for column in range(W):
            top, left = row // P * P, column // P * P
            keys = [(r, c) for r in range(top, top + P) for c in range(left, left + P)]
            tokens = torch.stack([x[r, c] if r < H and c < W else torch.zeros(C).double() for r, c in keys])
            with torch.no_grad():
                q = module.qkv(x[row, column])[:C]
                k = module.qkv(tokens)[:, C : 2 * C]
            shares = torch.stack(
                [(k[:, h * D : h * D + D] @ q[h * D : h * D + D] / D**0.5).softmax(0) for h in range(heads)]
            ).mean(0)
            real = [(place, share) for place, share in zip(keys, shares, strict=True) if place[0] < H and place[1] < W]
            total = sum(share for _, share in real)
            for (r, c), share in real:
                matrix[row * W + column, r * W + c] = share / total
    return (matrix + torch.eye(H * W)) / 2


def convolution_matrix(weight: Tensor, side: tuple[int, int], stride: int, padding: int, identity: bool) -> Tensor:
    """Mean absolute weights of the offsets that lie on the map, rows scaled to one."""
    (H, W), kernel = side, weight.abs().mean((0, 1))
    rows = [(-(-H // stride)), (-(-W // stride))]
    matrix = torch.zeros(rows[0] * rows[1], H * W, dtype=torch.float64)
    for i in range(rows[0]):
        for j in range(rows[1]):
            for a in range(kernel.shape[0]):
                for b in range(kernel.shape[1]):
                    r, c = i * stride + a - padding, j * stride + b - padding
                    if 0 <= r < H and 0 <= c < W:
                        matrix[i * rows[1] + j, r * W + c] += kernel[a, b].item()
    if identity:
        matrix = matrix + torch.eye(H * W)
    return matrix / matrix.sum(1, keepdim=True)


def dense(model: DaViT, image: Tensor) -> Tensor:
    """The whole rollout of the last map to the first, (N_4, N_1)."""
    seen = inputs(model, image)
    side = (-(-image.shape[1] // 4), -(-image.shape[2] // 4))
    product = torch.eye(side[0] * side[1], dtype=torch.float64)
    for index, stage in enumerate(model.stages):
        if index:
            weight = stage.downsample.proj.weight
            product = convolution_matrix(weight, side, 2, weight.shape[-1] // 3, False) @ product
            side = (-(-side[0] // 2), -(-side[1] // 2))
        for dual in stage.blocks:
            for block in dual.children():
                around = [block.cpe_attn, block.cpe_mlp] if block.mlp is not None else [block.cpe_attn]
                mixing = [
                    convolution_matrix(c.dwconv.weight, side, 1, 1, True) if hasattr(c, "dwconv") else None
                    for c in around
                ]
                if mixing[0] is not None:
                    product = mixing[0] @ product
                if isinstance(block.attn, WindowAttention):
                    product = window_matrix(block.attn, seen[block.attn]) @ product
                if len(mixing) > 1 and mixing[1] is not None:
                    product = mixing[1] @ product
    return product


@pytest.mark.parametrize(
    "changes",
    [{}, {"merge_kernel": 3, "attentions": ("channel", "window")}, {"conv_position": False, "mlp": False}],
    ids=["paper", "overlapped", "bare"],
)
def test_rollout_is_the_product_of_dense_matrices(changes: dict[str, object]) -> None:
    model, image = fresh(**changes), torch.randn(3, *SIZE).double()
    wanted = dense(model, image)
    side = (4, 5)
    everywhere = one_hot(side, torch.arange(side[0]), torch.arange(side[1]))
    found = attention_rollout(model, image, asking=everywhere)
    assert found.side == side
    assert found.rows.shape == (20, 25, 33)
    torch.testing.assert_close(found.rows.flatten(1), wanted, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(found.rows.sum((1, 2)), torch.ones(20).double())
    mean = attention_rollout(model, image)
    torch.testing.assert_close(mean.rows[0].flatten(), wanted.mean(0), atol=1e-8, rtol=1e-5)


def test_rows_sum_to_one_at_every_stage_and_size() -> None:
    model = fresh(merge_kernel=3)
    for height, width in ((97, 131), (33, 32), (8, 200), (1, 1)):
        image = torch.randn(3, height, width)
        record = record_attention(model, image, "all")
        for stage in range(4):
            found = attention_rollout(model, image, stage=stage, record=record)
            torch.testing.assert_close(found.rows.sum(), torch.ones(()).double())
            assert (found.rows >= 0).all()
            assert found.rows.shape[1:] == (-(-height // 4), -(-width // 4))


def test_without_convolutions_the_first_stage_stays_in_its_window() -> None:
    model = fresh(conv_position=False)
    asking = torch.zeros(1, 25, 33)
    asking[0, 9, 14] = 1.0
    found = attention_rollout(model, torch.randn(3, *SIZE), stage=0, asking=asking).rows[0]
    inside = found[8:12, 12:16]
    torch.testing.assert_close(inside.sum(), torch.ones(()).double())
    assert found[9, 14] > 0.5  # the residual branch alone is a half


def test_channels_are_products_inside_a_stage() -> None:
    model, image = fresh(), torch.randn(3, *SIZE).double()
    seen = inputs(model, image)
    found = attention_rollout(model, image).channels
    assert [tuple(stage.shape) for stage in found] == [(2, 8, 8), (2, 8, 8), (4, 8, 8), (4, 8, 8)]
    for stage, got in zip(model.stages, found, strict=True):
        for group in range(got.shape[0]):
            product = torch.eye(8, dtype=torch.float64)
            for dual in stage.blocks:
                module = dual.channel.attn
                x = seen[module].flatten(0, 1)
                with torch.no_grad():
                    q, k, _ = module.qkv(x).chunk(3, -1)
                q, k = (part[:, group * 8 : group * 8 + 8] for part in (q, k))
                affinity = F.softmax(q.T @ k / 8**0.5, -1)
                product = (affinity + torch.eye(8)) / 2 @ product
            torch.testing.assert_close(got[group], product, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(got[group].sum(-1), torch.ones(8).double())


def test_a_model_of_one_attention_has_its_rollout() -> None:
    image = torch.randn(3, 64, 64)
    channel = attention_rollout(fresh(attentions=("channel",)), image)
    assert len(channel.channels) == 4
    window = attention_rollout(fresh(attentions=("window",)), image)
    assert window.channels == ()
    assert not torch.allclose(window.rows, channel.rows)
