"""The weights of a model as the engine takes them: folded where that saves work, in the order of `source/model.hpp`."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from davit.models.attention import ChannelAttention, WindowAttention
from davit.models.blocks import NORM_EPS, AttentionBlock, ConvPositionEncoding
from davit.models.classifier import Classifier
from davit.models.config import DaViTConfig
from davit.models.davit import DaViT, Downsample, PatchEmbed, Stage
from davit.models.dense import DenseBackbone

NativeModel = Classifier | DaViT | DenseBackbone

HEAD_WIDTH = 32


def backbone_of(model: NativeModel) -> DaViT:
    """The backbone in a model, or the model itself."""
    return model if isinstance(model, DaViT) else model.backbone


def check_supported(config: DaViTConfig) -> None:
    """Refuse what the engine cannot run.

    Raises:
        ValueError: which field, and what to do.
    """
    if config.head_width != HEAD_WIDTH:
        raise ValueError(
            f"the native engine computes attention in heads of {HEAD_WIDTH} channels, this model has "
            f"head_width={config.head_width}; use the eager backend"
        )


def list_numbers(model: NativeModel) -> list[int]:
    """The architecture, in the order of `read_model`."""
    config = backbone_of(model).config
    classes = model.config.num_classes if isinstance(model, Classifier) else 0
    numbers = [
        config.in_channels,
        config.merge_kernel,
        config.window,
        config.channel_scale == "tokens",
        config.conv_position,
        isinstance(model, DenseBackbone),
        classes,
        len(config.attentions),
        *(attention == "channel" for attention in config.attentions),
    ]
    for width, depth in zip(config.widths, config.depths, strict=True):
        numbers += [width, depth, int(width * config.mlp_ratio) if config.mlp else 0]
    return [int(number) for number in numbers]


def list_tensors(model: NativeModel) -> list[Tensor]:
    """The weights, float32, contiguous, in the order of `read_model`."""
    with torch.no_grad():
        return [tensor.detach().to("cpu", torch.float32).contiguous() for tensor in _tensors(model)]


def _tensors(model: NativeModel) -> Iterator[Tensor]:
    for index, stage in enumerate(backbone_of(model).stages):
        assert isinstance(stage, Stage)
        yield from _embedding(stage.downsample)
        for dual in stage.blocks:
            for block in dual.children():
                assert isinstance(block, AttentionBlock)
                yield from block_tensors(block)
        if isinstance(model, DenseBackbone):
            yield from _affine(model.norms[index])
    if isinstance(model, Classifier):
        yield from fold_norm(model.norm, model.head.weight, model.head.bias)


def _embedding(embedding: nn.Module) -> Iterator[Tensor]:
    if isinstance(embedding, PatchEmbed):
        yield from (embedding.proj.weight.flatten(1), _bias(embedding.proj), *_affine(embedding.norm))
        return
    assert isinstance(embedding, Downsample)
    yield from _affine(embedding.norm)
    yield from merge_tensors(embedding)


def merge_tensors(merge: Downsample) -> Iterator[Tensor]:
    """The convolution with its inputs in the order row, column, channel."""
    yield from (merge.proj.weight.permute(0, 2, 3, 1).flatten(1), _bias(merge.proj))


def block_tensors(block: AttentionBlock) -> Iterator[Tensor]:
    """The tensors of one attention block; the norms go into the layers behind them."""
    yield from position_tensors(block.cpe_attn)
    attention = block.attn
    assert isinstance(attention, WindowAttention | ChannelAttention)
    weight, bias = fold_norm(block.norm_attn, attention.qkv.weight, attention.qkv.bias)
    width = weight.shape[1]
    if isinstance(attention, WindowAttention):
        weight[:width] *= attention.head_width**-0.5
        bias[:width] *= attention.head_width**-0.5
        # A padded token is zero behind the norm, so that its key and value know nothing of the norm.
        yield from (weight, bias, attention.qkv.bias[width:])
    else:
        yield from (weight[: 2 * width], bias[: 2 * width], weight[2 * width :], bias[2 * width :])
    yield from (attention.proj.weight, attention.proj.bias)
    if block.mlp is not None:
        yield from position_tensors(block.cpe_mlp)
        yield from fold_norm(block.norm_mlp, block.mlp.fc1.weight, block.mlp.fc1.bias)
        yield from (block.mlp.fc2.weight, block.mlp.fc2.bias)


def position_tensors(position: nn.Module) -> Iterator[Tensor]:
    """Taps (3, 3, C) and bias, the residual connection added to the centre; nothing for none."""
    if isinstance(position, ConvPositionEncoding):
        taps = position.dwconv.weight.double().squeeze(1).permute(1, 2, 0).clone()
        taps[1, 1] += 1.0
        yield from (taps, _bias(position.dwconv))


def fold_norm(norm: nn.Module, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A linear layer behind a norm as one behind the norm without its weight and bias, in float64."""
    gain, shift = (tensor.double() for tensor in _affine(norm))
    folded = weight.double()
    return folded * gain, bias.double() + folded @ shift


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(norm, nn.LayerNorm)
    if norm.eps != NORM_EPS:
        raise ValueError(
            f"the native engine norms with eps={NORM_EPS}, this model with {norm.eps}; use the eager backend"
        )
    return norm.weight, norm.bias


def _bias(convolution: nn.Conv2d) -> Tensor:
    assert convolution.bias is not None
    return convolution.bias
