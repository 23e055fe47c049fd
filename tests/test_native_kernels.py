"""The kernels of the native engine, each against its module of the reference model in float64, or whole numbers."""

import ctypes
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davit.inference.backends.native.build import FLAGS, SOURCE, compile_library, find_compiler
from davit.inference.backends.native.quantization import code_weights
from davit.inference.backends.native.weights import fold_norm, merge_tensors, position_tensors
from davit.models.attention import channel_attention
from davit.models.blocks import ConvPositionEncoding, Mlp
from davit.models.davit import Downsample, PatchEmbed

# The processor's own, and the narrower vectors and older instructions of lesser ones, as far as this one can run them.
TARGETS = {
    "native": "-march=native",
    "no vnni": "-march=native -mno-avx512vnni",
    "avx2": "-mavx2 -mfma -mno-avx512f",
    "plain": "-march=x86-64",
}
X86 = os.uname().machine == "x86_64"


@pytest.fixture(scope="module", params=TARGETS if X86 else ["native"])
def kernels(request, tmp_path_factory) -> ctypes.CDLL:
    if request.param == "avx2" and " avx2 " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX2")
    flags = [flag for flag in FLAGS if flag != "-march=native"] + TARGETS[request.param].split()
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    compile_library(SOURCE / "kernels.cpp", path, find_compiler(), ["-O1" if flag == "-O3" else flag for flag in flags])
    return ctypes.CDLL(str(path))


def call(function, *arguments) -> int:
    """Pass tensors by their address, and keep them alive meanwhile."""
    held = [a.contiguous().float() if isinstance(a, Tensor) and a.dtype == torch.float64 else a for a in arguments]
    return function(*(ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in held))


def close(found: Tensor, wanted: Tensor, tolerance: float = 2e-6) -> None:
    """Judge by the size of what is compared; a NaN is never close."""
    wanted = wanted.detach()
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= tolerance * max(1.0, float(wanted.abs().max()))


def randomise(module: nn.Module) -> nn.Module:
    """Weights that matter, in float64; PyTorch's norms begin as nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 2
            parameter.copy_(torch.randn_like(parameter) * fan_in**-0.5)
    return module.double().eval()


def test_exp_and_gelu_are_exact(kernels):
    x = torch.cat((torch.linspace(-12, 12, 4000), torch.tensor([-1e4, 1e4, -0.0, 1e-30] * 4)))
    found = torch.empty_like(x)
    call(kernels.test_gelu, x, len(x), found)
    error = found - F.gelu(x.double())
    assert float(error.abs().max()) < 8e-7  # PyTorch's own is 4e-7 to 1.1e-6, by processor
    assert float(error[x.abs() < 3].square().mean().sqrt()) < 8e-8
    assert found[x == -1e4].eq(0).all()
    x = -x.abs()
    call(kernels.test_exp_negative, x, len(x), found)
    exact = x.double().exp()
    assert float(((found - exact).abs() / (exact + 1e-30)).max()) < 3e-7


def test_functions_pass_on_what_is_no_number(kernels):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0] * 4)
    found = torch.empty_like(x)
    call(kernels.test_gelu, x, len(x), found)
    torch.testing.assert_close(found, F.gelu(x.double()).float(), equal_nan=True)
    x = torch.tensor([float("nan"), -float("inf"), -200.0, 0.0] * 4)
    call(kernels.test_exp_negative, x, len(x), found)
    torch.testing.assert_close(found, x.exp(), equal_nan=True)


def test_transpose(kernels):
    lanes = kernels.test_lanes()
    square, found = torch.randn(lanes, lanes), torch.empty(lanes, lanes)
    call(kernels.test_transpose, square, found)
    assert found.equal(square.T)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 49, 61])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 32), (147, 96), (33, 10), (300, 200), (800, 4), (5, 64)])
def test_linear(kernels, rows, inputs, outputs):
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs) * inputs**-0.5
    bias, before = torch.randn(outputs), torch.randn(rows, outputs)
    exact = F.linear(x.double(), weight.double(), bias.double())
    for finish, wanted in enumerate((exact, before + exact, F.gelu(exact))):
        found = before.clone()
        call(kernels.test_linear, weight, bias, inputs, outputs, x, rows, finish, found)
        close(found, wanted, 5e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 49, 61])
@pytest.mark.parametrize(
    ("inputs", "outputs", "begin"), [(32, 32, 0), (96, 10, 0), (416, 200, 192), (800, 64, 0), (768, 96, 576)]
)
def test_products_in_pairs(kernels, rows, inputs, outputs, begin):
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs) * inputs**-0.5
    bias, before = torch.randn(outputs), torch.randn(rows, outputs)
    exact = x.double()[:, begin:] @ weight.double()[:, begin:].T + (0 if begin else bias)
    for finish, wanted in enumerate((exact, before + exact, F.gelu(exact))):
        found = before.clone()
        call(kernels.test_paired_linear, weight, bias, inputs, outputs, x, rows, begin, finish, found)
        close(found, wanted, 5e-6)


def factors(kind: str) -> tuple[Tensor, Tensor]:
    """Rows (64, 512) and weights (96, 512) of numbers that are hard for products in pairs."""
    x, weight, sizes = torch.randn(64, 512), torch.randn(96, 512), 10 ** torch.randn(512)
    if kind == "gelu":
        x = F.gelu(2 * x - 1)
    elif kind == "one sign":
        x, weight = x.abs(), weight.abs()
    elif kind == "neighbours alike":
        x[:, 1::2] = 0.95 * x[:, ::2] + 0.3 * x[:, 1::2]
    elif kind == "a few large inputs":
        x[:, [5, 200]] *= 50
    elif kind == "a large pair":
        x[:, 4:6] *= 60
    elif kind == "inputs of many sizes":
        x, weight = x * sizes, weight / sizes
    elif kind == "rows and outputs of many sizes":
        x, weight = x * 1e3 ** torch.randn(64, 1), weight * 1e3 ** torch.randn(96, 1)
    return x, weight


ALLOWED = {  # times the plain tile's error
    **dict.fromkeys(("normal", "gelu", "one sign", "neighbours alike", "a few large inputs"), 2),
    **dict.fromkeys(("inputs of many sizes", "rows and outputs of many sizes"), 2),
    "a large pair": 4,
}


@pytest.mark.parametrize("kind", ALLOWED)
def test_pairs_keep_the_digits(kernels, kind):
    x, weight = factors(kind)
    exact, products = x.double() @ weight.double().T, x.double().norm(dim=1)[:, None] * weight.double().norm(dim=1)
    errors = []
    for multiply, begin in ((kernels.test_linear, ()), (kernels.test_paired_linear, (0,))):
        found = torch.empty(64, 96)
        call(multiply, weight, torch.zeros(96), 512, 96, x, 64, *begin, 0, found)
        errors.append(float(((found - exact) / products).square().mean().sqrt()))
    assert errors[1] <= ALLOWED[kind] * errors[0]


def test_pairs_of_zeros_and_of_what_is_no_number(kernels):
    x, weight, bias = torch.randn(4, 64), torch.randn(32, 64), torch.randn(32)
    x[0], x[1, 3], x[2, 5], weight[7], weight[:, 9] = 0, float("nan"), float("inf"), 0, 0
    found = torch.empty(4, 32)
    call(kernels.test_paired_linear, weight, bias, 64, 32, x, 4, 0, 0, found)
    assert found[0].equal(bias)
    assert found[3, 7] == bias[7]
    assert not found[1:3].isfinite().any()
    close(found[3:], F.linear(x[3:].double(), weight.double(), bias.double()), 5e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (6, 1), (2, 2), (5, 9)])
def test_position_encoding_and_norm(kernels, height, width):
    position = randomise(ConvPositionEncoding(64))
    x = torch.randn(3, height, width, 64)
    taps, bias = (tensor for _, tensor in position_tensors("", position))
    out, y = torch.empty_like(x), torch.empty_like(x)
    call(kernels.test_gather_rows, x, 3, height, width, 64, taps.detach(), bias.detach(), out, y)
    wanted = position(x.double())
    close(out, wanted)
    close(y, F.layer_norm(wanted, (64,)), 1e-5)


@pytest.mark.parametrize(("height", "width", "side"), [(7, 7, 7), (9, 16, 5), (3, 4, 7), (4, 4, 1)])
def test_windows_are_gathered_in_order(kernels, height, width, side):
    position = randomise(ConvPositionEncoding(32))
    x = torch.randn(2, height, width, 32)
    stream = position(x.double())
    numbers = torch.arange(2 * height * width, dtype=torch.float64).view(2, height, width)
    windows = [
        numbers[b, y : y + side, x : x + side].flatten()
        for b in range(2)
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]
    taps, bias = (tensor.detach() for _, tensor in position_tensors("", position))
    for begin, end in ((0, len(windows)), (len(windows) // 2, len(windows)), (1, min(3, len(windows)))):
        out, y = torch.zeros_like(x), torch.zeros_like(x).flatten(0, 2)
        places = torch.zeros(len(y), dtype=torch.int64)
        arguments = (x, 2, height, width, 32, side, begin, end, taps, bias, out, y, places)
        count = call(kernels.test_gather_windows, *arguments)
        wanted = torch.cat([numbers.new_empty(0), *windows[begin:end]]).long()
        assert count == len(wanted)
        assert (places[:count] // 32).equal(wanted)
        close(y[:count], F.layer_norm(stream.flatten(0, 2)[wanted], (32,)), 1e-5)
        close(out.flatten(0, 2)[wanted], stream.flatten(0, 2)[wanted])


@pytest.mark.parametrize("tokens", [1, 3, 16, 48, 49, 144, 256])
@pytest.mark.parametrize("padded", [0, 1, 30])
def test_window_attention(kernels, tokens, padded):
    q, k, v = (torch.randn(tokens, 32) * 2 for _ in range(3))
    padded_key, padded_value = torch.randn(2, 32)
    found = torch.empty(tokens, 32)
    call(kernels.test_window_attention, q, k, v, tokens, padded, padded_key, padded_value, found)
    keys, values = torch.cat((k, padded_key.expand(padded, 32))), torch.cat((v, padded_value.expand(padded, 32)))
    wanted = F.scaled_dot_product_attention(q[None].double(), keys[None].double(), values[None].double(), scale=1.0)
    close(found, wanted[0], 1e-5)


def test_window_attention_among_logits_far_below_zero(kernels):
    """The columns that fill up a vector must not join in."""
    q, k, v = -torch.full((3, 32), 4.0), torch.full((3, 32), 3.0), torch.randn(3, 32)
    found = torch.empty(3, 32)
    call(kernels.test_window_attention, q, k, v, 3, 0, k[0], v[0], found)
    close(found, v.mean(0).expand(3, 32), 1e-6)


@pytest.mark.parametrize(("tokens", "parts"), [(1, 1), (7, 1), (49, 1), (100, 4), (1500, 5)])
def test_channel_attention(kernels, tokens, parts):
    q, k, v = (torch.randn(tokens, 32) for _ in range(3))
    found = torch.empty(tokens, 32)
    scale = tokens**-0.5
    call(kernels.test_channel_attention, q, k, v, tokens, parts, ctypes.c_float(scale), found)
    wanted = channel_attention(*(x.double()[None, None] for x in (q, k, v)), scale)
    close(found, wanted[0, 0], 1e-5)


@pytest.mark.parametrize(("tokens", "channels", "parts"), [(1, 32, 1), (100, 96, 3), (33, 160, 2), (700, 64, 5)])
def test_gram_matrix_and_sums(kernels, tokens, channels, parts):
    x = torch.randn(tokens, channels) + 0.3
    found = torch.empty(channels + 1, channels)
    call(kernels.test_gram, x, tokens, channels, parts, found)
    close(found, torch.cat((x.double().T @ x.double(), x.double().sum(0, keepdim=True))))


@pytest.mark.parametrize(("height", "width", "channels"), [(1, 1, 3), (2, 9, 1), (13, 30, 3), (32, 33, 5)])
def test_patch_embedding(kernels, height, width, channels):
    module = randomise(PatchEmbed(channels, 64))
    images = torch.randn(2, channels, height, width)
    wanted = module(images.double())
    found = torch.empty(wanted.shape)
    weights = [module.proj.weight.flatten(1), module.proj.bias, module.norm.weight, module.norm.bias]
    weights = [weight.detach() for weight in weights]
    call(kernels.test_embed, images, 2, channels, height, width, 64, *weights, found)
    close(found, wanted, 1e-5)


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("channels", [32, 288])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (1, 6), (5, 4), (7, 7), (9, 14)])
def test_patch_merging(kernels, kernel, channels, height, width):
    module = randomise(Downsample(channels, 96, kernel))
    x = torch.randn(2, height, width, channels)
    wanted = module(x.double())
    found = torch.empty(wanted.shape)
    norm = [module.norm.weight.detach(), module.norm.bias.detach()]
    weight, bias = (tensor.detach() for tensor in merge_tensors(module))
    shape = (2, height, width, channels, 96, kernel)
    for paired in (0, 1):
        call(kernels.test_merge, x, *shape, *norm, weight, None, None, bias, paired, found.fill_(9))
        close(found, wanted, 1e-5)
    codes, scales = code_weights(weight.float())
    call(kernels.test_merge, x, *shape, *norm, None, codes, scales, bias, 0, found)
    close(found, wanted, 0.05)


def test_norm_folded_into_the_mlp_behind_it(kernels):
    norm, mlp = randomise(nn.LayerNorm(64)), randomise(Mlp(64, 150))
    x = torch.randn(20, 64)
    wanted = mlp(norm(x.double()))
    normed = F.layer_norm(x, (64,))
    weight, bias = (tensor.detach() for tensor in fold_norm(norm, mlp.fc1.weight, mlp.fc1.bias))
    hidden, found = torch.empty(20, 150), torch.empty(20, 64)
    call(kernels.test_linear, weight, bias, 64, 150, normed, 20, 2, hidden)
    call(kernels.test_linear, mlp.fc2.weight.detach(), mlp.fc2.bias.detach(), 150, 64, hidden, 20, 0, found)
    close(found, wanted, 1e-5)


def coded(kernels, x: Tensor, kind: int = 0) -> tuple[Tensor, Tensor]:
    """Codes and scales of rows; kind 0 as they are, 1 normed, 2 behind GELU."""
    codes, scales = torch.full(x.shape, 99, dtype=torch.int32), torch.empty(len(x))
    call(kernels.test_codes, x, *x.shape, kind, codes, scales)
    return codes, scales


@pytest.mark.parametrize("inputs", [32, 64, 352])
def test_codes_are_half_a_step_off_at_most(kernels, inputs):
    x = (torch.randn(20, inputs) + torch.linspace(0, 3, 20)[:, None]) * torch.logspace(-6, 6, 20)[:, None]
    for kind, wanted in enumerate((x, F.layer_norm(x.double(), (inputs,)), F.gelu(x.double()))):
        codes, scales = coded(kernels, x, kind)
        torch.testing.assert_close(scales, wanted.abs().amax(1).float() / 127, rtol=1e-4, atol=1e-5 * (kind > 0))
        assert (codes * scales[:, None] - wanted).abs().le(scales[:, None] * 0.502 + 3e-4 * (kind == 2)).all()
        assert codes.abs().amax(1).ge(126).all()


@pytest.mark.parametrize("inputs", [1, 5, 17, 33, 103])
def test_codes_of_rows_that_fill_no_vector(kernels, inputs):
    x = torch.randn(9, inputs)
    codes, scales = coded(kernels, x)
    assert codes.equal((x / x.abs().amax(1, keepdim=True) * 127).round().int())
    assert scales.equal(x.abs().amax(1) / 127)


def test_codes_of_rows_at_the_edges(kernels):
    x = torch.zeros(6, 64)
    x[1, 5], x[2] = 3e38, 1e-40  # one huge outlier; nothing but subnormals
    x[2:, 7] = torch.tensor([1e-40, float("nan"), float("inf"), -float("inf")])
    x[3, 9] = 1e30
    codes, scales = coded(kernels, x)
    assert codes[0].eq(0).all()
    assert scales[0] == 0
    assert (codes[1, 5], codes[1].count_nonzero()) == (127, 1)
    assert codes[2].eq(0).all()
    assert scales[:3].isfinite().all()
    assert not scales[3:].isfinite().any()
    assert scales[3].isnan()
    assert not (coded(kernels, x[3:], 1)[1].isfinite()).any()
    assert not (coded(kernels, x[3:5], 2)[1].isfinite()).any()


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 49, 61])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(32, 32), (147, 96), (33, 10), (300, 200), (1, 4), (5, 64), (2048, 20)]
)
def test_whole_numbers_are_multiplied_exactly(kernels, rows, inputs, outputs):
    """Rows and weights up to 127 have themselves for codes; sums of the largest ones would saturate pairs."""
    weight, x = torch.randint(-127, 128, (outputs, inputs)), torch.randint(-127, 128, (rows, inputs))
    weight[::3], x[::2], x[:, -1] = weight[::3].sign() * 127, 127, 127
    weight[-1] = 127
    bias, before, ones = torch.randn(outputs), torch.randn(rows, outputs), torch.ones(outputs)
    for begin in {0, inputs // 8 * 4}:
        sums = (x[:, begin:] @ weight[:, begin:].T).double()
        exact = sums + bias.double() * (begin == 0)
        for finish, wanted in enumerate((exact, before + exact)):
            found = before.clone()
            arguments = (weight.to(torch.int8), ones, bias, inputs, outputs, x.float(), rows, begin, finish, found)
            call(kernels.test_coded_linear, *arguments)
            assert (found - wanted).abs().le(wanted.abs() * 2e-7 + 1e-6).all()


def test_scales_of_rows_and_outputs(kernels):
    weight, x, bias = torch.randn(40, 64), torch.randn(13, 64) * torch.logspace(-3, 3, 13)[:, None], torch.randn(40)
    (codes, scales), found = code_weights(weight), torch.empty(13, 40)
    call(kernels.test_coded_linear, codes, scales, bias, 64, 40, x, 13, 0, 0, found)
    row_codes, row_scales = coded(kernels, x)
    sums = row_codes.long() @ codes.long().T
    close(found, sums * scales.double() * row_scales.double()[:, None] + bias)
    call(kernels.test_coded_linear, codes, scales, bias, 64, 40, x, 13, 0, 2, found)
    close(found, F.gelu(sums * scales.double() * row_scales.double()[:, None] + bias))
