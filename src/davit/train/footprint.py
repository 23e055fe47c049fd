"""What one training step keeps in memory, counted on tensors that have shapes and no values."""

import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_KINDS = ("gradients", "activations", "copies", "workspace")
_BESIDE = {"peak": _KINDS, "beside_gradients": _KINDS[1:], "beside_weights": ("activations", "workspace")}


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What is alive at one point of a step beside parameters, moments and average, in bytes.

    Attributes:
        gradients: of parameters.
        activations: what the forward pass kept for the backward pass, as far as it is still there.
        copies: 16-bit copies of weights, which autocast makes and the backward pass needs.
        workspace: everything else: what an operator just made, and the gradients of activations.
    """

    gradients: int = 0
    activations: int = 0
    copies: int = 0
    workspace: int = 0

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return self.sum(_KINDS)

    def sum(self, kinds: Sequence[str]) -> int:
        """Sum of the parts named."""
        return sum(getattr(self, kind) for kind in kinds)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Memory of a forward and a backward pass, in bytes.

    Attributes:
        kept: after the forward pass: the batch and what the backward pass needs.
        peak: where most is alive, if the step begins without gradients.
        beside_gradients: where most is alive beside gradients; for a step that begins with all of them, as when they
            are accumulated.
        beside_weights: where most is alive beside gradients and copies; for weights that are in shards.
    """

    kept: Moment
    peak: Moment
    beside_gradients: Moment
    beside_weights: Moment


def footprint(
    make: Callable[[], nn.Module],
    loss: Callable[[nn.Module, Tensor], Tensor],
    shape: Sequence[int],
    *,
    precision: torch.dtype,
    gpu: bool,
) -> Footprint:
    """Run forward and backward without values and count the storages that are alive after each operator.

    The tensors pretend to lie on a CPU: autograd refuses those of a GPU that is not there. For a GPU, norms are
    computed in fp32 under autocast, the one difference between the two devices that this model meets. What an operator
    takes for itself while it runs is not seen.

    Args:
        make: builds the model; called with the meta device as default.
        loss: loss of a model on images; it makes its targets.
        shape: of the images of one device, (B, C, H, W).
        precision: of autocast; fp32 for none.
        gpu: count as on a GPU.
    """
    with torch.device("meta"):
        model = make().train()
    if gpu:
        _norms_in_fp32(model)
    lowered = precision != torch.float32
    with ExitStack() as modes:
        modes.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        model.to_empty(device="cpu")
        ledger = modes.enter_context(_Ledger(model))
        images = torch.empty(tuple(shape))
        with torch.autocast("cpu", precision, enabled=lowered):
            total = loss(model, images)
        kept = ledger.end_forward()
        total.backward()
    return Footprint(kept=kept, **ledger.peaks)


def _norms_in_fp32(model: nn.Module) -> None:
    """Autocast on a GPU computes norms in fp32, so that the residual stream becomes fp32; on a CPU it does not."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(_to_fp32)


def _to_fp32(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].float(),)


class _Ledger(TorchDispatchMode):
    """Follows every storage from the operator that makes it to its end."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self.sizes: dict[int, int] = {}
        self.kinds: dict[int, str] = {}
        self.alive = dict.fromkeys(_KINDS, 0)
        self.peaks = dict.fromkeys(_BESIDE, Moment())
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self._note_gradient)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        copied = func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self.parameters
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage(), "copies" if copied else "workspace")
        self._compare()
        return made

    def end_forward(self) -> Moment:
        """What is alive now, the backward pass needs; from now on it is told from workspace."""
        for key, kind in self.kinds.items():
            if kind == "workspace":
                self._move(key, "activations")
        kept = Moment(**self.alive)
        self.peaks = {name: _told_apart(moment, kept) for name, moment in self.peaks.items()}
        return kept

    def _note(self, storage: Any, kind: str) -> None:
        key = storage._cdata
        if key in self.sizes or key in self.parameters:
            return
        self.sizes[key], self.kinds[key] = storage.nbytes(), kind
        self.alive[kind] += storage.nbytes()
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.alive[self.kinds.pop(key)] -= self.sizes.pop(key)

    def _move(self, key: int, kind: str) -> None:
        self.alive[self.kinds[key]] -= self.sizes[key]
        self.alive[kind] += self.sizes[key]
        self.kinds[key] = kind

    def _note_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        if self.kinds.get(key, "gradients") != "gradients":
            self._move(key, "gradients")

    def _compare(self) -> None:
        for name, kinds in _BESIDE.items():
            if sum(self.alive[kind] for kind in kinds) > self.peaks[name].sum(kinds):
                self.peaks[name] = Moment(**self.alive)


def _told_apart(peak: Moment, kept: Moment) -> Moment:
    """Nothing is freed before the forward pass ends that outlives it, so its peak holds nearly all that is kept."""
    activations = min(peak.workspace, kept.activations)
    return replace(peak, activations=activations, workspace=peak.workspace - activations)
