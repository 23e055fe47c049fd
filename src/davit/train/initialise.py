"""First values of a model's parameters, one module after the other, so that no process needs to hold them all.

The values follow from the seed and the module's place in the model, not from how many processes share it.
"""

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from davit.models.classifier import Classifier
from davit.models.davit import DaViT, init_linear
from davit.seeding import seed_everything
from davit.train.parallel import fill
from davit.weights.load import LoadedModel

INIT_STREAM = 2


def initialise(model: nn.Module, seed: int, known: Mapping[str, Tensor], start: Classifier | None = None) -> None:
    """Give every parameter and buffer of `model` its value, in place.

    Args:
        model: on its device and sharded already, if it is to be; what it holds is overwritten.
        seed: decides fresh values.
        known: values that need not be drawn, by name.
        start: a classifier whose head rows are kept for classes of the same name.
    """
    places = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, value in known.items():
        fill(places[name], value)
    for name, value in fresh_values(model, seed, known):
        if start is not None and name.startswith("head."):
            assert isinstance(model, Classifier)
            keep_rows(value, getattr(start.head, name.removeprefix("head.")), start.classes, model.classes)
        fill(places[name], value)


def fresh_values(model: nn.Module, seed: int, known: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Draw the values that are not known, as the official code does; a module at a time is in memory."""
    for index, (path, module) in enumerate(model.named_modules()):
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        names = {f"{path}.{name}" if path else name: name for name, _ in own}
        if all(name in known for name in names):
            continue
        leaf = _copy_of(module)
        seed_everything(seed, INIT_STREAM, index)
        leaf.reset_parameters()  # type: ignore[not-callable]
        if isinstance(model, Classifier) or path.startswith("backbone."):
            init_linear(leaf)
        values = {**dict(leaf.named_parameters()), **dict(leaf.named_buffers())}
        yield from ((full, values[name].detach()) for full, name in names.items() if full not in known)


def _copy_of(module: nn.Module) -> nn.Module:
    """A module of the same kind on the CPU without its children, its values undefined."""
    assert hasattr(module, "reset_parameters"), f"no first values are known for a {type(module).__name__}"
    leaf = copy.copy(module)
    empty = {
        kind: {name: None if value is None else _empty(value) for name, value in getattr(module, kind).items()}
        for kind in ("_parameters", "_buffers")
    }
    leaf.__dict__.update(empty, _modules={})
    return leaf


def _empty(value: Tensor) -> Tensor:
    tensor = torch.empty(value.shape, dtype=value.dtype)
    return nn.Parameter(tensor) if isinstance(value, nn.Parameter) else tensor


def values_of(start: LoadedModel, model: nn.Module) -> dict[str, Tensor]:
    """What a loaded model knows of another: the backbone, and beside it what has the same name and shape.

    A classifier's last layer is left to `keep_rows`: its rows belong to classes.
    """
    if isinstance(start, DaViT):
        return {f"backbone.{name}": tensor for name, tensor in start.state_dict().items()}
    wanted = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    same = {name for name, value in start.state_dict().items() if name in wanted and value.shape == wanted[name].shape}
    return {
        name: value
        for name, value in start.state_dict().items()
        if name.startswith("backbone.") or (name in same and not (isinstance(start, Classifier) and "head." in name))
    }


def coverage(name: str, known: Mapping[str, Tensor], model: nn.Module) -> str:
    """One line on how much of a model the weights called `name` give; the rest has fresh values."""
    wanted = [*dict(model.named_parameters()), *dict(model.named_buffers())]
    fresh = dict.fromkeys(tensor.split(".")[0] for tensor in wanted if tensor not in known)
    backbone = sum(tensor.startswith("backbone.") for tensor in wanted)
    taken = sum(tensor.startswith("backbone.") for tensor in known)
    line = f"{name} gives {taken} of {backbone} tensors of the backbone and {len(known) - taken} others"
    return f"{line}; fresh values: {', '.join(fresh)}" if fresh else line


@torch.no_grad()
def keep_rows(rows: Tensor, given: Tensor, given_classes: tuple[str, ...], classes: tuple[str, ...]) -> None:
    """Overwrite the rows of classes that both know by name."""
    places = {name: row for row, name in enumerate(given_classes)}
    for row, name in enumerate(classes):
        if name in places:
            rows[row] = given[places[name]]
