"""The native engine in int8: against the same arithmetic in PyTorch, on a trained model, and how layers are chosen."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davit.data.digits import Digits
from davit.inference.backends.native.engine import NativeEngine
from davit.inference.backends.native.quantization import Quantization, code_weights
from davit.inference.backends.native.quantize import quantize
from davit.inference.backends.native.weights import layer_names
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.preprocessing import Preprocessing
from davit.records import from_json, to_json
from test_native_engine import CONFIGS, SMALL, classifier, lively, outputs


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """For PyTorch, whose threads wait for each other on a busy machine; the engine's are given where they matter."""
    torch.set_num_threads(1)


def int8(model: nn.Module, threads: int = 1, layers: tuple[str, ...] = ()) -> NativeEngine:
    backbone = model.backbone if hasattr(model, "backbone") else model
    return NativeEngine(model, threads, Quantization(layers=layers or tuple(layer_names(backbone.config))))


def off(found: Tensor, wanted: Tensor) -> float:
    """Root mean square of the difference, over that of what is wanted around its mean."""
    return float((found - wanted).square().mean().sqrt() / (wanted - wanted.mean()).square().mean().sqrt())


def rounded(x: Tensor, dim: int) -> Tensor:
    """To 255 values for each token, which has its channels along `dim`."""
    scale = x.abs().amax(dim, keepdim=True).clamp_min(1e-30) / 127
    return (x / scale).round() * scale


def simulated(model: DaViT, name: str) -> DaViT:
    """A model in float64; one layer has weights and activations rounded as the engine rounds them, norms folded."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        if hasattr(module, "norm_attn"):
            pairs = [(module.norm_attn, module.attn.qkv), (module.norm_mlp, module.mlp.fc1)]
            for norm, linear in pairs:
                linear.bias.data += linear.weight.data @ norm.bias.data
                linear.weight.data *= norm.weight.data
                nn.init.ones_(norm.weight)
                nn.init.zeros_(norm.bias)
    layer = model.get_submodule(name)
    dim = 1 if isinstance(layer, nn.Conv2d) else -1
    layer.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0], dim),))
    codes, scales = code_weights(layer.weight.data.flatten(1))
    layer.weight.data = (codes * scales[:, None]).view_as(layer.weight)
    return model


@pytest.mark.parametrize(("kernel", "threads"), [(2, 1), (3, 2)])
def test_each_layer_computes_the_same_arithmetic(kernel, threads):
    """Windows without padding: what is padded knows nothing of the norm, which the simulation folds.

    In single layers, for a code that rounds to its neighbour changes all codes behind it.
    """
    model = lively(DaViT(SMALL.override(window=2, merge_kernel=kernel)))
    images = torch.randn(1, 3, 64, 64)
    plain = NativeEngine(model, threads)(images)
    modules = dict(model.named_modules())
    for name in layer_names(SMALL):
        assert isinstance(modules[name], (nn.Linear, nn.Conv2d))
        stage = int(name.split(".")[1])
        found = int8(model, threads, (name,))(images)
        with torch.inference_mode():
            wanted = simulated(model, name)(images.double())
        assert all(map(torch.equal, found[:stage], plain[:stage]))
        error = off(plain[stage], wanted[stage])
        assert 1e-4 < error < 0.05, name
        share = 0.4 if name.endswith("fc2") else 0.2  # its GELU is as exact as the codes need
        assert off(found[stage], wanted[stage]) < share * error, name


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", [Classifier, DenseBackbone])
def test_every_architecture_stays_close_to_float32(kind, config):
    model = classifier(config) if kind is Classifier else lively(kind(config))
    engine = int8(model, 2)
    for batch, height, width in ((2, 33, 64), (1, 97, 70), (3, 5, 1)):
        images = torch.randn(batch, config.in_channels, height, width)
        with torch.inference_mode():
            for found, wanted in zip(outputs(engine(images)), outputs(model(images)), strict=True):
                assert off(found, wanted) < 0.1


def test_unknown_layers_are_refused():
    with pytest.raises(ValueError, match=r"stages\.1\.downsample\.proj"):
        int8(classifier(), layers=("stages.1.downsample.prj",))


def test_answers_do_not_depend_on_the_number_of_threads_or_the_batch():
    model = classifier()
    images = torch.randn(6, 3, 70, 90)
    together = int8(model, 3)(images)
    assert int8(model, 3)(images).equal(together)
    torch.testing.assert_close(int8(model, 1)(images[2:3]), together[2:3], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e15])
def test_what_is_no_number_goes_through_and_stays_in_its_image(bad):
    model = classifier()
    images = torch.randn(3, 3, 60, 60)
    clean = int8(model)(images)
    images[1, 0, 30, 30] = bad
    found = int8(model)(images)
    assert found.isnan().equal(NativeEngine(model)(images).isnan())
    assert found[[0, 2]].equal(clean[[0, 2]])


def test_images_of_nothing():
    model = classifier()
    images = torch.zeros(2, 3, 40, 40)
    assert off(int8(model)(images), NativeEngine(model)(images)) < 0.05


@pytest.fixture(scope="module")
def trained() -> tuple[Classifier, Tensor, Tensor]:
    """A model of digits that tells most of them, with test images and their classes."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    preprocessing = Preprocessing(size=(16, 16), mean=(0.5,), std=(0.5,))
    data = {split: [(preprocessing(picture), label) for picture, label in Digits(split)] for split in ("train", "test")}
    images, labels = (torch.stack([torch.as_tensor(x) for x in part]) for part in zip(*data["train"], strict=True))
    config = DaViTConfig(in_channels=1, widths=(32, 32, 64, 64), depths=(1, 1, 1, 1), window=2, mlp_ratio=2.0)
    model = Classifier(ClassifierConfig(backbone=config, num_classes=10))
    model.preprocessing, model.classes = preprocessing, tuple("0123456789")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(4):
        for some in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(images[some]), labels[some]).backward()
            optimizer.step()
    test_images, test_labels = zip(*data["test"], strict=True)
    return model.eval(), torch.stack(test_images), torch.tensor(test_labels)


def test_a_trained_model_loses_at_most_half_a_point(trained):
    model, images, labels = trained
    chosen = quantize(model, images[:64].split(16))
    assert chosen.layers
    assert chosen.error <= 0.05

    def right(compute) -> float:
        with torch.inference_mode():
            return float(compute(images).argmax(1).eq(labels).float().mean())

    assert right(model) > 0.8
    assert right(NativeEngine(model, quantization=chosen)) >= right(model) - 0.005


def test_the_worst_layers_stay_float32(trained):
    model, images, _ = trained
    strict = quantize(model, [images[:20]], max_error=1e-3)
    assert set(strict.layers) | set(strict.kept) == set(layer_names(model.config.backbone))
    assert strict.error <= 1e-3
    assert strict.kept
    assert strict.images == 20
    assert len(strict.errors) == len(strict.layers) + len(strict.kept)
    errors = dict(zip(strict.layers + strict.kept, strict.errors, strict=True))
    assert max(errors[name] for name in strict.layers) <= min(errors[name] for name in strict.kept)
    assert quantize(model, [images[:4]], max_error=0.0).layers == ()
    assert from_json(Quantization, to_json(strict)) == strict


def test_a_layer_that_int8_ruins_is_found(trained):
    """One hidden channel, which counts for nothing, is so large that all others round to zero."""
    model, images, _ = trained
    model = copy.deepcopy(model)
    mlp = model.backbone.stages[1].blocks[0].window.mlp
    with torch.no_grad():
        mlp.fc1.bias[5] = 3e3
        mlp.fc2.weight[:, 5] = 0.0
    chosen = quantize(model, [images[:16]], max_error=0.01)
    assert chosen.kept == ("stages.1.blocks.0.window.mlp.fc2",)
    assert chosen.error <= 0.01


def test_images_that_cannot_choose_are_refused(trained):
    model, images, _ = trained
    with pytest.raises(ValueError, match="got none"):
        quantize(model, [])
    with pytest.raises(ValueError, match="no finite numbers"):
        quantize(model, [torch.full_like(images[:2], float("nan"))])
    with pytest.raises(ValueError, match="no classifier, detector or segmenter"):
        quantize(nn.Linear(2, 2), [images])
