"""What modules are given and give while a model runs, for the thread that asks: others may use the model meanwhile."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def inputs_of(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collect what the modules are given while the context lasts."""
    inputs: dict[nn.Module, Tensor] = {}
    asker = threading.get_ident()

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() == asker:
            inputs[module] = args[0]

    with _removed(module.register_forward_pre_hook(keep) for module in modules):
        yield inputs


@contextmanager
def differentiable_outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what the modules, which run one after the other, give; gradients reach back to the first of them."""
    outputs: list[Tensor] = []
    asker = threading.get_ident()

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if threading.get_ident() != asker:
            return None
        if not outputs:
            output = output.detach().requires_grad_()
        outputs.append(output)
        return output

    with _removed(module.register_forward_hook(keep) for module in modules):
        yield outputs


@contextmanager
def _removed(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take hooks off at the end, those already there even if making the next one fails."""
    with ExitStack() as made:
        for handle in handles:
            made.callback(handle.remove)
        yield
