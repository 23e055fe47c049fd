"""DaViT written down once more from the paper's equations, in float64 and with plain loops, as a third opinion.

Nothing here is shared with the library but the names of the weights. It is slow and meant to be read beside arXiv
2204.03645, section 3: maps are (H, W, C), one image at a time.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]

HEAD = 32  # channels of a head and of a group

_erf = np.vectorize(math.erf)


def layer_norm(x: Array, weights: Weights, name: str) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Array, weights: Weights, name: str) -> Array:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(x: Array) -> Array:
    return x * 0.5 * (1.0 + _erf(x / math.sqrt(2.0)))


def attention(q: Array, k: Array, v: Array) -> Array:
    """Equation 1 for one head: rows are tokens."""
    return softmax(q @ k.T / math.sqrt(HEAD)) @ v


def patch_convolution(x: Array, weights: Weights, name: str, stride: int, padding: int) -> Array:
    """A convolution between two resolutions; as many outputs as strides begin inside the map."""
    kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]  # (out, in, k, k)
    side = kernel.shape[-1]
    height, width = math.ceil(x.shape[0] / stride), math.ceil(x.shape[1] / stride)
    canvas = np.zeros((height * stride + side + padding, width * stride + side + padding, x.shape[2]))
    canvas[padding : padding + x.shape[0], padding : padding + x.shape[1]] = x
    out = np.zeros((height, width, kernel.shape[0]))
    for i in range(height):
        for j in range(width):
            patch = canvas[i * stride : i * stride + side, j * stride : j * stride + side]  # (k, k, in)
            out[i, j] = np.einsum("yxc,ocyx->o", patch, kernel) + bias
    return out


def position_encoding(x: Array, weights: Weights, name: str) -> Array:
    """X plus a 3x3 convolution of each channel by itself."""
    kernel, bias = weights[f"{name}.dwconv.weight"], weights[f"{name}.dwconv.bias"]  # (C, 1, 3, 3)
    height, width, _ = x.shape
    out = x + bias
    for i in range(height):
        for j in range(width):
            for a in (-1, 0, 1):
                for b in (-1, 0, 1):
                    if 0 <= i + a < height and 0 <= j + b < width:
                        out[i, j] += kernel[:, 0, a + 1, b + 1] * x[i + a, j + b]
    return out


def window_attention(x: Array, weights: Weights, name: str, window: int) -> Array:
    """Section 3.2: heads attend inside each window; past the border a window holds zeros, which take part."""
    height, width, channels = x.shape
    out = np.zeros_like(x)
    for top in range(0, height, window):
        for left in range(0, width, window):
            inside = x[top : top + window, left : left + window]
            rows, columns = inside.shape[:2]
            tokens = np.zeros((window, window, channels))
            tokens[:rows, :columns] = inside
            qkv = linear(tokens.reshape(window * window, channels), weights, f"{name}.qkv")
            heads = []
            for head in range(channels // HEAD):
                q, k, v = (qkv[:, part * channels + head * HEAD :][:, :HEAD] for part in range(3))
                heads.append(attention(q, k, v))
            result = linear(np.concatenate(heads, axis=1), weights, f"{name}.proj")
            out[top : top + window, left : left + window] = result.reshape(window, window, channels)[:rows, :columns]
    return out


def channel_attention(x: Array, weights: Weights, name: str, scale: str) -> Array:
    """Section 3.3, equations 3 and 4: inside each group, channels are the tokens."""
    height, width, channels = x.shape
    tokens = height * width
    qkv = linear(x.reshape(tokens, channels), weights, f"{name}.qkv")
    divisor = math.sqrt(HEAD if scale == "channels" else tokens)
    groups = []
    for group in range(channels // HEAD):
        q, k, v = (qkv[:, part * channels + group * HEAD :][:, :HEAD] for part in range(3))  # each (N, C_g)
        groups.append((softmax(q.T @ k / divisor) @ v.T).T)
    return linear(np.concatenate(groups, axis=1), weights, f"{name}.proj").reshape(x.shape)


def attention_block(x: Array, weights: Weights, name: str, kind: str, window: int, scale: str) -> Array:
    """Figure 3: position encoding, attention, position encoding, feed-forward."""
    x = position_encoding(x, weights, f"{name}.cpe_attn")
    normed = layer_norm(x, weights, f"{name}.norm_attn")
    if kind == "window":
        x = x + window_attention(normed, weights, f"{name}.attn", window)
    else:
        x = x + channel_attention(normed, weights, f"{name}.attn", scale)
    x = position_encoding(x, weights, f"{name}.cpe_mlp")
    hidden = gelu(linear(layer_norm(x, weights, f"{name}.norm_mlp"), weights, f"{name}.mlp.fc1"))
    return x + linear(hidden, weights, f"{name}.mlp.fc2")


def backbone(image: Array, weights: Weights, depths: tuple[int, ...], window: int, scale: str) -> list[Array]:
    """Four maps (H, W, C) of an image (height, width, channels); weights are those of the bare backbone."""
    x, maps = image, []
    for stage, depth in enumerate(depths):
        name = f"stages.{stage}.downsample"
        if stage == 0:
            x = layer_norm(patch_convolution(x, weights, f"{name}.proj", 4, 3), weights, f"{name}.norm")
        else:
            kernel = weights[f"{name}.proj.weight"].shape[-1]
            normed = layer_norm(x, weights, f"{name}.norm")
            x = patch_convolution(normed, weights, f"{name}.proj", 2, 1 if kernel == 3 else 0)
        for block in range(depth):
            for kind in ("window", "channel"):
                x = attention_block(x, weights, f"stages.{stage}.blocks.{block}.{kind}", kind, window, scale)
        maps.append(x)
    return maps


def classify(last: Array, weights: Weights) -> Array:
    """Pool, norm, linear."""
    return linear(layer_norm(last.mean((0, 1)), weights, "norm"), weights, "head")
