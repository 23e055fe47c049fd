"""The weights of a model as the engine takes them: folded where that saves work, in the order of `source/model.hpp`."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from davit.inference.backends.native.quantization import code_weights
from davit.models.attention import ChannelAttention, WindowAttention
from davit.models.blocks import NORM_EPS, AttentionBlock, ConvPositionEncoding
from davit.models.classifier import Classifier
from davit.models.config import DaViTConfig
from davit.models.davit import DaViT, Downsample, PatchEmbed, Stage
from davit.models.dense import DenseBackbone
from davit.naming import unknown_name

NativeModel = Classifier | DaViT | DenseBackbone
Named = tuple[str, Tensor]

HEAD_WIDTH = 32


@dataclass(frozen=True, kw_only=True)
class NativeWeights:
    """What an engine is made from.

    Attributes:
        config: the backbone's.
        classes: number of logits; 0 for maps.
        map_norms: a norm on each map.
        coded: names of the layers in int8, see `layer_names`.
        tensors: by name, in the order of `read_model`, contiguous, float32; of layers in int8 codes and scales in place
            of weights.
    """

    config: DaViTConfig
    classes: int
    map_norms: bool
    coded: frozenset[str] = frozenset()
    tensors: Mapping[str, Tensor]

    @property
    def numbers(self) -> list[int]:
        """The architecture, in the order of `read_model`."""
        return [int(number) for number in self._numbers()]

    def _numbers(self) -> Iterator[int]:
        config = self.config
        yield from (config.in_channels, config.merge_kernel, config.window, config.channel_scale == "tokens")
        yield from (config.conv_position, self.map_norms, self.classes, len(config.attentions))
        yield from (attention == "channel" for attention in config.attentions)
        for stage, width in enumerate(config.widths):
            yield from (width, config.depths[stage], int(width * config.mlp_ratio) if config.mlp else 0)
            yield from (layer in self.coded for layer in _layers_of_stage(config, stage))


def native_weights(model: NativeModel) -> NativeWeights:
    """Take a model's weights; of a model on the meta device, only their names, types and shapes.

    Args:
        model: a classifier, a backbone, or a backbone with norms on its maps.

    Raises:
        ValueError: an architecture that the engine does not know.
    """
    check_supported(backbone_of(model).config)
    with torch.no_grad():
        tensors = {name: _plain(tensor) for name, tensor in _tensors(model)}
    return NativeWeights(
        config=backbone_of(model).config,
        classes=model.config.num_classes if isinstance(model, Classifier) else 0,
        map_norms=isinstance(model, DenseBackbone),
        tensors=tensors,
    )


def with_codes(weights: NativeWeights, layers: Collection[str]) -> NativeWeights:
    """Some weights with some more layers in int8.

    Raises:
        ValueError: no such layer.
    """
    known = layer_names(weights.config)
    for name in layers:
        if name not in known:
            raise unknown_name("layer", name, known)
    parts = {part for name in layers for part in (name, f"{name}.query_key", f"{name}.value")}
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.tensors.items():
        layer, _, last = name.rpartition(".")
        if last == "weight" and layer in parts:
            tensors[f"{layer}.codes"], tensors[f"{layer}.scales"] = code_weights(tensor)
        else:
            tensors[name] = tensor
    return replace(weights, coded=weights.coded | set(layers), tensors=tensors)


def layer_names(config: DaViTConfig) -> list[str]:
    """The layers that may be int8, named as modules inside the backbone."""
    return [name for stage in range(len(config.widths)) for name in _layers_of_stage(config, stage)]


def _layers_of_stage(config: DaViTConfig, stage: int) -> Iterator[str]:
    if stage:
        yield f"stages.{stage}.downsample.proj"
    for index in range(config.depths[stage]):
        for attention in config.attentions:
            for layer in ("attn.qkv", "attn.proj", *(("mlp.fc1", "mlp.fc2") if config.mlp else ())):
                yield f"stages.{stage}.blocks.{index}.{attention}.{layer}"


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


def _tensors(model: NativeModel) -> Iterator[Named]:
    for index, stage in enumerate(backbone_of(model).stages):
        assert isinstance(stage, Stage)
        yield from _embedding(f"stages.{index}.downsample", stage.downsample)
        for place, dual in enumerate(stage.blocks):
            for name, block in dual.named_children():
                assert isinstance(block, AttentionBlock)
                yield from block_tensors(f"stages.{index}.blocks.{place}.{name}", block)
        if isinstance(model, DenseBackbone):
            yield from _norm(f"norms.{index}", model.norms[index])
    if isinstance(model, Classifier):
        yield from _linear("head", *fold_norm(model.norm, model.head.weight, model.head.bias))


def _embedding(name: str, embedding: nn.Module) -> Iterator[Named]:
    if isinstance(embedding, PatchEmbed):
        yield from _linear(f"{name}.proj", embedding.proj.weight.flatten(1), _bias(embedding.proj))
        yield from _norm(f"{name}.norm", embedding.norm)
        return
    assert isinstance(embedding, Downsample)
    yield from _norm(f"{name}.norm", embedding.norm)
    yield from _linear(f"{name}.proj", *merge_tensors(embedding))


def merge_tensors(merge: Downsample) -> tuple[Tensor, Tensor]:
    """The convolution with its inputs in the order row, column, channel; and its bias."""
    return merge.proj.weight.permute(0, 2, 3, 1).flatten(1), _bias(merge.proj)


def block_tensors(name: str, block: AttentionBlock) -> Iterator[Named]:
    """The tensors of one attention block; the norms go into the layers behind them."""
    yield from position_tensors(f"{name}.cpe_attn", block.cpe_attn)
    attention = block.attn
    assert isinstance(attention, WindowAttention | ChannelAttention)
    weight, bias = fold_norm(block.norm_attn, attention.qkv.weight, attention.qkv.bias)
    width, qkv = weight.shape[1], f"{name}.attn.qkv"
    if isinstance(attention, WindowAttention):
        for folded in () if weight.is_meta else (weight, bias):
            folded[:width] *= attention.head_width**-0.5
        yield from _linear(qkv, weight, bias)
        # A padded token is zero behind the norm, so that its key and value know nothing of the norm.
        yield f"{qkv}.padded", attention.qkv.bias[width:]
    else:
        yield from _linear(f"{qkv}.query_key", weight[: 2 * width], bias[: 2 * width])
        yield from _linear(f"{qkv}.value", weight[2 * width :], bias[2 * width :])
    yield from _linear(f"{name}.attn.proj", attention.proj.weight, attention.proj.bias)
    if block.mlp is not None:
        yield from position_tensors(f"{name}.cpe_mlp", block.cpe_mlp)
        yield from _linear(f"{name}.mlp.fc1", *fold_norm(block.norm_mlp, block.mlp.fc1.weight, block.mlp.fc1.bias))
        yield from _linear(f"{name}.mlp.fc2", block.mlp.fc2.weight, block.mlp.fc2.bias)


def position_tensors(name: str, position: nn.Module) -> Iterator[Named]:
    """Taps (3, 3, C) and bias, the residual connection added to the centre; nothing for none."""
    if isinstance(position, ConvPositionEncoding):
        taps = position.dwconv.weight.double().squeeze(1).permute(1, 2, 0).clone()
        if not taps.is_meta:
            taps[1, 1] += 1.0
        yield f"{name}.weight", taps
        yield f"{name}.bias", _bias(position.dwconv)


def fold_norm(norm: nn.Module, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A linear layer behind a norm as one behind the norm without its weight and bias, in float64.

    Of meta tensors only the shapes count: PyTorch would load its compiler, for seconds, to compute with them.
    """
    gain, shift = _affine(norm)
    if weight.is_meta:
        return weight, bias
    folded = weight.double()
    return folded * gain.double(), bias.double() + folded @ shift.double()


def _linear(name: str, weight: Tensor, bias: Tensor) -> Iterator[Named]:
    yield from ((f"{name}.weight", weight), (f"{name}.bias", bias))


def _norm(name: str, norm: nn.Module) -> Iterator[Named]:
    weight, bias = _affine(norm)
    yield from ((f"{name}.weight", weight), (f"{name}.bias", bias))


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


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("meta" if tensor.is_meta else "cpu", torch.float32).contiguous()
