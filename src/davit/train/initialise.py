"""First values of a model's parameters, one module after the other, so that no process needs to hold them all.

The values follow from the seed and the module's place in the model, not from how many processes share it.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from davit.models.classifier import Classifier
from davit.models.davit import DaViT, init_linear
from davit.models.dense import DenseBackbone
from davit.seeding import seed_everything
from davit.train.parallel import fill

INIT_STREAM = 2


def initialise(model: nn.Module, seed: int, known: Mapping[str, Tensor], start: Classifier | None = None) -> None:
    """Give every parameter of `model` its value, in place.

    Args:
        model: on its device and sharded already, if it is to be; what it holds is overwritten.
        seed: decides fresh values.
        known: values that need not be drawn, by name.
        start: a classifier whose head rows are kept for classes of the same name.
    """
    parameters = dict(model.named_parameters())
    for name, value in known.items():
        fill(parameters[name], value)
    for name, value in fresh_values(model, seed, known):
        if start is not None and name.startswith("head."):
            assert isinstance(model, Classifier)
            keep_rows(value, getattr(start.head, name.removeprefix("head.")), start.classes, model.classes)
        fill(parameters[name], value)


def fresh_values(model: nn.Module, seed: int, known: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Draw the values of parameters that are not known, as the official code does; a module at a time is in memory."""
    for index, (path, module) in enumerate(model.named_modules()):
        names = {f"{path}.{name}" if path else name: name for name, _ in module.named_parameters(recurse=False)}
        if all(name in known for name in names):
            continue
        leaf = _copy_of(module)
        seed_everything(seed, INIT_STREAM, index)
        leaf.reset_parameters()
        init_linear(leaf)
        yield from ((full, leaf.get_parameter(name).detach()) for full, name in names.items())


def _copy_of(module: nn.Module) -> nn.Linear | nn.Conv2d | nn.LayerNorm:
    """A plain module of the same shape on the CPU, its values undefined."""
    if isinstance(module, nn.Linear):
        return nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
    if isinstance(module, nn.Conv2d):
        kernel, groups = (module.kernel_size[0], module.kernel_size[1]), module.groups
        return nn.Conv2d(module.in_channels, module.out_channels, kernel, groups=groups, bias=module.bias is not None)
    assert isinstance(module, nn.LayerNorm), f"no first values are known for a {type(module).__name__}"
    return nn.LayerNorm(list(module.normalized_shape), eps=module.eps)


def values_of(start: Classifier | DaViT | DenseBackbone) -> dict[str, Tensor]:
    """Backbone and final norm of a loaded model, under the names that a classifier has for them."""
    backbone = start if isinstance(start, DaViT) else start.backbone
    values = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    if isinstance(start, Classifier):
        values |= {f"norm.{name}": tensor for name, tensor in start.norm.state_dict().items()}
    return values


@torch.no_grad()
def keep_rows(rows: Tensor, given: Tensor, given_classes: tuple[str, ...], classes: tuple[str, ...]) -> None:
    """Overwrite the rows of classes that both know by name."""
    places = {name: row for row, name in enumerate(given_classes)}
    for row, name in enumerate(classes):
        if name in places:
            rows[row] = given[places[name]]
