"""The native engine against the reference model: every architecture, size and batch; and what it is given wrongly."""

import copy
import ctypes
import math
import multiprocessing
import pickle
import threading

import pytest
import torch
from torch import Tensor, nn

from davit.inference.backends.native.build import FLAGS, SOURCE, compile_library, find_compiler
from davit.inference.backends.native.engine import NativeEngine, declare
from davit.inference.backends.native.quantization import Quantization
from davit.inference.backends.native.weights import layer_names
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.models.variants import variant


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """For PyTorch, whose threads wait for each other on a busy machine; the engine's are given where they matter."""
    torch.set_num_threads(1)


SMALL = DaViTConfig(widths=(32, 64, 96, 128), depths=(1, 1, 1, 1))
CONFIGS = {
    "plain": SMALL,
    "florence2": SMALL.override(merge_kernel=3, channel_scale="tokens", window=12),
    "odd widths, no positions": SMALL.override(widths=(96, 32, 160, 64), conv_position=False, mlp_ratio=1.7),
    "channel first, one channel": SMALL.override(attentions=("channel", "window"), in_channels=1, window=5),
    "windows alone, no mlp": SMALL.override(attentions=("window",), mlp=False, depths=(2, 1, 2, 1)),
    "channels alone, no mlp": SMALL.override(attentions=("channel",), mlp=False, merge_kernel=3),
    "windows of one": SMALL.override(window=1, in_channels=5, mlp_ratio=0.05),
}
SIZES = [(1, 1, 1), (2, 3, 17), (3, 33, 64), (1, 97, 70), (1, 224, 64)]  # batch, height, width
FLOOR = 1e-6  # of the largest number: a step of float32 is 1.2e-7


def lively(model: nn.Module) -> nn.Module:
    """Weights with which every part of a model matters."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            elif "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                nn.init.normal_(parameter, std=0.3)
    return model.eval()


def classifier(config: DaViTConfig = SMALL, classes: int = 10) -> Classifier:
    model = lively(Classifier(ClassifierConfig(backbone=config, num_classes=classes)))
    assert isinstance(model, Classifier)
    return model


def outputs(x: Tensor | list[Tensor]) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else x


def assert_as_exact(engine: NativeEngine, model: nn.Module, images: list[Tensor], times: float = 2.0) -> None:
    """Error against float64, in the root mean square over outputs and images, at most twice that of the plain model."""
    exact = copy.deepcopy(model).double()
    ours, plain = [], []
    with torch.inference_mode():
        for batch in images:
            answers = (outputs(engine(batch)), outputs(model(batch)), outputs(exact(batch.double())))
            for found, other, wanted in zip(*answers, strict=True):
                assert found.shape == wanted.shape
                size = float(wanted.abs().max())
                ours.append(float((found - wanted).square().mean()) / size**2)
                plain.append(float((other - wanted).square().mean()) / size**2)
    error, allowed = math.sqrt(sum(ours) / len(ours)), math.sqrt(sum(plain) / len(plain))
    assert error <= times * max(allowed, FLOOR / 4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", [Classifier, DaViT, DenseBackbone])
def test_every_architecture_is_as_exact_as_the_plain_model(kind, config):
    model = classifier(config) if kind is Classifier else lively(kind(config))
    images = [torch.randn(batch, config.in_channels, height, width) for batch, height, width in SIZES[:4]]
    assert_as_exact(NativeEngine(model, 2), model, images)


@pytest.mark.parametrize(("batch", "height", "width"), SIZES)
def test_every_size_with_any_number_of_threads(batch, height, width):
    for threads in (1, 2, 3):
        model = lively(DaViT(SMALL))
        assert_as_exact(NativeEngine(model, threads), model, [torch.randn(batch, 3, height, width) for _ in range(2)])


@pytest.mark.parametrize("paired", [0, 1])
def test_with_and_without_products_in_pairs(tmp_path, monkeypatch, paired):
    """Whatever this processor likes."""
    flags = [*FLAGS, f"-DDAVIT_PAIRED={paired}", "-O1"]
    compile_library(SOURCE / "engine.cpp", tmp_path / "engine.so", find_compiler(), flags)
    library = ctypes.CDLL(str(tmp_path / "engine.so"))
    declare(library)
    monkeypatch.setattr("davit.inference.backends.native.engine._checked_library", lambda: library)
    for config in (SMALL.override(widths=(32, 64, 288, 384)), CONFIGS["florence2"]):
        model = classifier(config)
        images = [torch.randn(batch, 3, height, width) for batch, height, width in SIZES]
        assert_as_exact(NativeEngine(model, 2), model, images)


def test_maps_lie_as_the_backbones_do():
    model = lively(DaViT(SMALL))
    images = torch.randn(2, 3, 50, 41)
    for found, wanted in zip(NativeEngine(model)(images), model(images), strict=True):
        assert found.shape == wanted.shape
        assert found.stride() == wanted.stride()


@pytest.mark.parametrize(("name", "height", "width"), [("davit_tiny", 224, 224), ("davit_base_florence2", 97, 113)])
def test_named_variants(name, height, width):
    model = classifier(variant(name), 1000)
    assert_as_exact(NativeEngine(model, 2), model, [torch.randn(1, 3, height, width)])


@pytest.mark.parametrize("scale", ["channels", "tokens"])
@pytest.mark.parametrize(("batch", "height", "width", "threads"), [(1, 130, 110, 1), (3, 96, 128, 2), (1, 200, 300, 3)])
def test_channel_attention_of_many_tokens_is_nearly_as_exact(scale, batch, height, width, threads):
    """By the Gram matrix in the first stages; with random weights its large diagonal brings only its rounding."""
    model = lively(DaViT(SMALL.override(attentions=("channel",), widths=(96, 64, 160, 32), channel_scale=scale)))
    assert_as_exact(NativeEngine(model, threads), model, [torch.randn(batch, 3, height, width) for _ in range(3)], 5)


def fuzz(count: int, pixels: int) -> None:
    """Sizes from 1 to 600, small ones as often as large ones, and batches from 0 to 33, as far as `pixels` allow."""
    model = classifier()
    engines = [NativeEngine(model), NativeEngine(model, 3, Quantization(layers=tuple(layer_names(SMALL))))]
    for _ in range(count):
        height, width = (int(600 ** float(torch.rand(()))) for _ in range(2))
        batch = int(torch.randint(0, min(33, pixels // (height * width)) + 1, ()))
        images = torch.randn(batch, 3, height, width)
        with torch.inference_mode():
            plain, coded, wanted = (compute(images) for compute in (*engines, model))
        told = f"{tuple(images.shape)}"
        torch.testing.assert_close(plain, wanted, atol=2e-4, rtol=1e-4, msg=lambda text, told=told: f"{told}: {text}")
        assert coded.shape == wanted.shape
        assert (coded - wanted).norm(dim=1).le(0.5 * wanted.norm(dim=1)).all(), told  # random weights, all int8


def test_fuzz_of_sizes_and_batches():
    fuzz(25, 100_000)


@pytest.mark.slow
def test_fuzz_of_more_sizes_and_batches():
    fuzz(150, 2_000_000)


def test_no_image_gives_no_answer():
    assert NativeEngine(classifier())(torch.empty(0, 3, 32, 32)).shape == (0, 10)
    shapes = [tuple(x.shape) for x in NativeEngine(DaViT(SMALL))(torch.empty(0, 3, 33, 64))]
    assert shapes == [(0, 32, 9, 16), (0, 64, 5, 8), (0, 96, 3, 4), (0, 128, 2, 2)]


def test_images_may_lie_in_memory_in_any_order():
    engine = NativeEngine(classifier())
    images = torch.randn(2, 3, 40, 48)
    wanted = engine(images)
    assert engine(images.contiguous(memory_format=torch.channels_last)).equal(wanted)
    assert engine(images.transpose(2, 3).contiguous().transpose(2, 3)).equal(wanted)
    assert engine(images.repeat_interleave(2, 3)[..., ::2]).equal(wanted)
    assert engine(images.requires_grad_()).equal(wanted)


def test_an_image_is_its_own_whatever_stands_beside_it():
    model = lively(DaViT(SMALL))
    engine = NativeEngine(model)
    images = torch.randn(5, 3, 70, 90)
    for together, alone in zip(engine(images), engine(images[3:4]), strict=True):
        torch.testing.assert_close(together[3:4], alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e15])
def test_what_is_no_number_goes_through_and_stays_in_its_image(bad):
    model = classifier()
    images = torch.randn(3, 3, 60, 60)
    images[1, 0, 30, 30] = bad
    found = NativeEngine(model)(images)
    with torch.inference_mode():
        wanted = model(images)
    assert found.isnan().equal(wanted.isnan())
    torch.testing.assert_close(found[[0, 2]], wanted[[0, 2]], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.float64), "float32"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "float32"),
        (torch.zeros(3, 8, 8), r"\(B, 3, height, width\)"),
        (torch.zeros(1, 4, 8, 8), r"\(B, 3, height, width\)"),
        (torch.zeros(1, 3, 0, 8), r"\(B, 3, height, width\)"),
        (torch.zeros(1, 3, 8, 8, device="meta"), "CPU"),
        (torch.zeros(1, 3, 8, 8).to_sparse(), "dense"),
        ([[1.0]], "tensor"),
    ],
)
def test_wrong_images_are_refused(images, told):
    with pytest.raises(ValueError, match=told):
        NativeEngine(classifier())(images)


@pytest.mark.parametrize("shape", [(1, 3, 2**16, 2**16), (1, 3, 2**33, 1), (2**31, 3, 1, 1), (2**20, 3, 2**10, 2**10)])
def test_images_beyond_memory_are_refused(shape):
    with pytest.raises(MemoryError, match="smaller"):
        NativeEngine(classifier())(torch.zeros(1).expand(shape))


def test_unusable_settings_are_refused():
    with pytest.raises(ValueError, match="head_width=16"):
        NativeEngine(DaViT(SMALL.override(head_width=16)))
    with pytest.raises(ValueError, match="threads"):
        NativeEngine(DaViT(SMALL), threads=0)
    with pytest.raises(TypeError, match="cannot be copied"):
        pickle.dumps(NativeEngine(DaViT(SMALL)))


def test_weights_are_copied():
    model = classifier()
    engine = NativeEngine(model)
    images = torch.randn(1, 3, 32, 32)
    before = engine(images)
    lively(model)
    assert engine(images).equal(before)
    del model
    assert engine(images).equal(before)


def test_making_an_engine_leaves_the_random_numbers_alone():
    state = torch.random.get_rng_state()
    NativeEngine(DaViT(SMALL))
    torch.manual_seed(0)
    model = DaViT(SMALL)
    torch.random.set_rng_state(state)
    after = torch.random.get_rng_state()
    NativeEngine(model)
    assert torch.random.get_rng_state().equal(after)


def test_memory_is_used_again():
    """The activations of a second forward are those of the first; results do not depend on what was there."""
    engine = NativeEngine(classifier())
    images = torch.randn(4, 3, 96, 96)
    first = engine(images)
    held = engine._library.davit_held(engine._handle)
    engine(torch.full((1, 3, 64, 64), float("nan")))
    assert engine(images).equal(first)
    assert engine._library.davit_held(engine._handle) == held


@pytest.mark.parametrize("name", ["plain", "florence2"])
def test_large_images_take_two_maps_and_little_more(name):
    """The residual stream before and after a block; normed maps, values and merges need no third."""
    config = CONFIGS[name].override(widths=(96, 192, 384, 768))
    engine = NativeEngine(DaViT(config), threads=2)
    one = 4 * 96 * (896 // 4) ** 2
    assert 2 * one <= engine._library.davit_memory(engine._handle, 1, 896, 896, 2) <= 2.9 * one


def test_several_threads_may_call_at_once():
    models = [classifier() for _ in range(2)]
    engines = [NativeEngine(model, threads) for model, threads in zip(models, (1, 3), strict=True)]
    images = [torch.randn(2, 3, 20 + 8 * i, 40) for i in range(4)]
    wanted = [[engine(batch) for batch in images] for engine in engines]
    wrong: list[tuple[int, int]] = []

    def work(first: int) -> None:
        for turn in range(first, first + 12):
            which, batch = turn % 2, turn // 2 % 4
            if not engines[which](images[batch]).equal(wanted[which][batch]):
                wrong.append((which, batch))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def _answer_in_child(engine: NativeEngine, images: Tensor, pipe) -> None:
    pipe.send([engine(images).tolist() for _ in range(3)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_goes_on_while_the_parent_computes():
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system does not fork")
    engine = NativeEngine(classifier(), 3)
    images = torch.randn(2, 3, 64, 64)
    wanted = engine(images).tolist()
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            engine(images)

    busy = threading.Thread(target=compute)
    busy.start()
    try:
        for _ in range(4):
            receiver, sender = multiprocessing.Pipe(duplex=False)
            child = multiprocessing.get_context("fork").Process(target=_answer_in_child, args=(engine, images, sender))
            child.start()
            assert receiver.poll(60), "the child hangs"
            assert receiver.recv() == [wanted] * 3
            child.join(60)
            assert child.exitcode == 0
    finally:
        stop.set()
        busy.join()
    assert engine(images).tolist() == wanted
