"""A classifier's logits or a backbone's maps, computed by the engine."""

import ctypes
import functools
import weakref
from collections import deque

import torch
from torch import Tensor, nn

from davit.inference.backends.native.build import NativeError, load_library
from davit.inference.backends.native.quantization import Quantization
from davit.inference.backends.native.weights import (
    NativeModel,
    NativeWeights,
    layer_names,
    native_weights,
    with_codes,
)
from davit.inference.memory import available_memory
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig

OUT_OF_MEMORY = 1
MOST_THREADS = 1024
GIVEN = 4  # tensors that the engine may hold at once while it reads them, see `Give` in model.hpp
GIVE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int)
CHECKED = 1e-4  # of the self-check, over the largest logit
CHECKED_INT8 = 0.1  # the same in int8; what is wrong there is wholly wrong


class NativeEngine:
    """The forward of a model in evaluation mode, on the CPU in float32 or partly int8, without gradients.

    The weights are copied and packed once. Calls from several threads take turns, also those of several engines: each
    uses all its threads. The memory for activations grows to what the largest batch takes, and is used again. A forked
    child can go on using an engine.

    Attributes:
        config: the backbone's.
        classes: number of logits; 0 for the four maps.
        threads: of each call; None takes as many as PyTorch has at the time.
    """

    def __init__(
        self,
        model: NativeModel | NativeWeights,
        threads: int | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        """Pack a model's weights.

        Args:
            model: a classifier, a backbone, a backbone with norms on its maps; or weights taken from one before.
            threads: None takes as many as PyTorch.
            quantization: which layers are int8; None for none but those that are so in the weights.

        Raises:
            NativeError: the engine cannot be compiled here, or does not compute what the model computes.
            ValueError: an architecture that it does not know; no such layer; a bad number of threads.
        """
        _check_threads(threads)
        if not isinstance(model, NativeWeights):
            model = native_weights(model)
        if quantization is not None:
            model = with_codes(model, quantization.layers)
        self._pack(_checked_library(), model)
        self.threads = threads

    def _pack(self, library: ctypes.CDLL, weights: NativeWeights) -> None:
        self.config, self.classes = weights.config, weights.classes
        numbers, names = weights.numbers, list(weights.tensors)
        kept: deque[Tensor] = deque(maxlen=GIVEN)  # what was given may still be read
        failures: list[BaseException] = []

        def give(number: int) -> int | None:
            try:
                kept.append(weights.tensors[names[number]])
            except BaseException as error:  # it cannot pass through C
                failures.append(error)
                return None
            return kept[-1].data_ptr()

        reason = ctypes.create_string_buffer(256)
        self._library = library
        self._handle = library.davit_create(
            (ctypes.c_int * len(numbers))(*numbers), len(numbers), GIVE(give), len(names), reason, len(reason)
        )
        if failures:
            raise failures[0]
        if not self._handle:
            raise ValueError(
                f"the native engine cannot take this model: {reason.value.decode()}; use the eager backend"
            )
        weakref.finalize(self, library.davit_destroy, self._handle)

    def __reduce__(self) -> str:
        """Refuse to be copied: the packed weights lie outside Python."""
        raise TypeError("a NativeEngine cannot be copied or pickled; make another from the model")

    def __call__(self, images: Tensor) -> Tensor | list[Tensor]:  # (B, in_channels, height, width)
        """Return logits (B, classes), or four maps (B, C, H, W) in memory order (B, H, W, C), as the backbone does.

        Any B, also none, and any height and width from 1 on; NaN and infinity go through. The images may lie in memory
        in any order.

        Raises:
            ValueError: images of another type, device, or shape.
            MemoryError: there is not enough memory for the activations of so large a batch.
        """
        self._check(images)
        threads = self.threads or torch.get_num_threads()
        batch, channels, height, width = images.shape
        if batch == 0:
            return self._answer(self._empty(images))
        self._check_memory(images, threads)
        outputs = self._empty(images)
        pixels = images.detach().contiguous()
        pointers = (ctypes.c_void_p * len(outputs))(*(output.data_ptr() for output in outputs))
        done = self._library.davit_forward(
            self._handle, pixels.data_ptr(), batch, channels, height, width, threads, pointers
        )
        if done == OUT_OF_MEMORY:
            raise _too_large(images)
        assert done == 0
        return self._answer(outputs)

    def _check(self, images: Tensor) -> None:
        wanted = self.config.in_channels
        if not isinstance(images, Tensor):
            raise ValueError(f"the native engine takes a tensor, got {type(images).__name__}")
        if images.dtype != torch.float32:
            raise ValueError(f"the native engine takes float32 images, got {images.dtype}; convert them with .float()")
        if images.device.type != "cpu" or images.layout != torch.strided:
            raise ValueError(f"the native engine takes dense images on the CPU, got {images.layout} on {images.device}")
        if images.ndim != 4 or images.shape[1] != wanted or 0 in images.shape[2:]:
            raise ValueError(f"this model takes images (B, {wanted}, height, width), got {tuple(images.shape)}")

    def _check_memory(self, images: Tensor, threads: int) -> None:
        """Ask before taking: systems promise more memory than they have, and end the process that makes use of it."""
        batch, _, height, width = images.shape
        needed = 0
        if max(batch, height, width) < 2**31:
            needed = self._library.davit_memory(self._handle, batch, height, width, threads)
        if needed == 0:
            raise _too_large(images)
        more = needed if needed > self._library.davit_held(self._handle) else 0
        if not images.is_contiguous():
            more += images.element_size() * images.numel()
        if more and more > available_memory():
            raise _too_large(images)

    def _empty(self, images: Tensor) -> list[Tensor]:
        batch, _, height, width = images.shape
        if self.classes:
            return [torch.empty(batch, self.classes)]
        maps = []
        for index, channels in enumerate(self.config.widths):
            stride = 2 if index else 4
            height, width = -(-height // stride), -(-width // stride)
            maps.append(torch.empty(batch, height, width, channels))
        return maps

    def _answer(self, outputs: list[Tensor]) -> Tensor | list[Tensor]:
        return outputs[0] if self.classes else [output.permute(0, 3, 1, 2) for output in outputs]


def _check_threads(threads: int | None) -> None:
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"threads must lie between 1 and {MOST_THREADS}, got {threads}")


def _too_large(images: Tensor) -> MemoryError:
    return MemoryError(
        f"not enough memory for the activations of images {tuple(images.shape)}; use a smaller batch or size"
    )


@functools.cache
def _checked_library() -> ctypes.CDLL:
    """Load the engine and compare it with a small model, once in each process: nobody tested what was compiled here."""
    library = load_library()
    declare(library)
    model = _small_model()
    weights = native_weights(model)
    for coded, allowed in (((), CHECKED), (layer_names(weights.config), CHECKED_INT8)):
        engine = NativeEngine.__new__(NativeEngine)
        engine._pack(library, with_codes(weights, coded))
        engine.threads = None
        _check_answers(engine, model, allowed)
    return library


def _check_answers(engine: NativeEngine, model: Classifier, allowed: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 3, 37, 50), (1, 3, 64, 64)):
        images = torch.randn(shape, generator=generator)
        with torch.inference_mode():
            wanted, found = model(images), engine(images)
        assert isinstance(found, Tensor)
        difference = float((wanted - found).abs().max() / wanted.abs().max())
        if not difference <= allowed:
            raise NativeError(
                "the native engine compiled here computes something else than the model (logits differ by "
                f"{difference:.1g} of the largest); compute with the eager backend, and report compiler and processor"
            )


def declare(library: ctypes.CDLL) -> None:
    """Tell ctypes what the functions take and return."""
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
    signatures = {
        "davit_create": (pointer, [pointer, number, GIVE, number, ctypes.c_char_p, size]),
        "davit_destroy": (None, [pointer]),
        "davit_memory": (size, [pointer, number, number, number, number]),
        "davit_held": (size, [pointer]),
        "davit_forward": (number, [pointer, pointer, *[number] * 5, pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


def _small_model() -> Classifier:
    """A classifier of both attentions with weights of every size that matters; no draw from PyTorch's own generator."""
    config = DaViTConfig(widths=(32, 64, 32, 64), depths=(1, 1, 1, 1), merge_kernel=3, window=5)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        model = Classifier(ClassifierConfig(backbone=config, num_classes=10))
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 9
        nn.init.normal_(parameter, std=fan_in**-0.5, generator=generator)
    return model.eval()
