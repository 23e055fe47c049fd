"""The one engine that renames tensors between our spelling of a model and another.

A format is a table of rules, each naming one module of ours and its name elsewhere. A table holds each name once on
either side, so that it reads and writes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from davit.models.config import ChannelScale
from davit.weights.checkpoint import Kind

StateDict = Mapping[str, Tensor]

QKV = "qkv"
VQK = "vqk"  # the original channel attention: its slot k acts as query, v as key, q as value


@dataclass(frozen=True)
class Rule:
    """One module with a weight and a bias.

    Attributes:
        ours: its name here; `*` stands for the number of a dual block or pooling, the same on both sides.
        theirs: its name there.
        slots: for packed projections, the roles of their three thirds; ours are query, key, value.
    """

    ours: str
    theirs: str
    slots: str = QKV


@dataclass(frozen=True, kw_only=True)
class Format:
    """Someone else's spelling of our models.

    Attributes:
        name: what we call it.
        made_by: whose files look like this.
        rules: the table.
        signature: the tensor that tells the format, below any prefix.
        scale: what its channel attention scales by.
        kinds: which of our modules it can hold.
        unused: modules that its files may hold although nothing reads them; left out.
        certain: its shapes leave no doubt about the window, as all known weights of these shapes agree.
        inner: prefix of the tower inside the format's own classifier or whole model.
        leaves: what a tensor of a module may be called.
        hint: what to do about tensors that the format does not know.
    """

    name: str
    made_by: str
    rules: tuple[Rule, ...]
    signature: str
    scale: ChannelScale
    kinds: tuple[Kind, ...]
    unused: tuple[str, ...] = ()
    certain: bool = True
    inner: str = ""
    leaves: tuple[str, ...] = ("weight", "bias")
    hint: str = ""

    @property
    def reordered(self) -> bool:
        """Whether the thirds of its channel projections are in another order than ours."""
        return any(rule.slots != QKV for rule in self.rules)

    def to_ours(self, state: StateDict) -> dict[str, Tensor]:
        """Rename a state dict of this format to ours; each tensor is used exactly once.

        Raises:
            ValueError: tensors that the format does not know.
        """
        table = {rule.theirs: (rule.ours, _order(QKV, rule.slots)) for rule in self.rules}
        return _to_bare(self._rename(state, table, f"not in the {self.name} format", self.hint))

    def from_ours(self, state: StateDict) -> dict[str, Tensor]:
        """Invert `to_ours`, to the bit.

        Raises:
            ValueError: tensors that the format has no place for.
        """
        table = {rule.ours: (rule.theirs, _order(rule.slots, QKV)) for rule in self.rules}
        return self._rename(_from_bare(state), table, f"without a place in the {self.name} format")

    def left_out(self, state: StateDict) -> list[str]:
        """Names of tensors that nothing reads: a final norm in a tower that has no classifier."""
        if "classifier" in self.kinds and self._their_head() in state:
            return []
        return [key for key in state if key.rpartition(".")[0] in self.unused]

    def _their_head(self) -> str:
        return next(rule.theirs for rule in self.rules if rule.ours == "head") + ".weight"

    def _rename(
        self, state: StateDict, table: Mapping[str, tuple[str, tuple[int, ...]]], complaint: str, hint: str = ""
    ) -> dict[str, Tensor]:
        renamed: dict[str, Tensor] = {}
        unknown: list[str] = []
        for key, tensor in state.items():
            module, _, leaf = key.rpartition(".")
            found = _look_up(module, table)
            if found is None or leaf not in self.leaves:
                unknown.append(key)
                continue
            name, order = found
            renamed[f"{name}.{leaf}"] = _reorder(key, tensor, order)
        if unknown:
            raise ValueError(f"{len(unknown)} of {len(state)} tensors {complaint}: {describe(unknown)}{hint}")
        return renamed


def stages(rules: Iterable[Rule], first: int = 0) -> tuple[Rule, ...]:
    """Repeat rules for each stage from `first`: `{s}` is its number, `{p}` the number before."""
    return tuple(
        Rule(rule.ours.format(s=s), rule.theirs.format(s=s, p=s - 1), rule.slots)
        for s in range(first, 4)
        for rule in rules
    )


def block(attention: str, theirs: str, leaves: Mapping[str, str], slots: str = QKV) -> tuple[Rule, ...]:
    """Rules of one attention block, from the names of its parts there."""
    prefix = f"backbone.stages.{{s}}.blocks.*.{attention}"
    return tuple(
        Rule(f"{prefix}.{ours}", f"{theirs}.{name}", slots if ours == "attn.qkv" else QKV)
        for ours, name in leaves.items()
    )


def describe(keys: Iterable[str], limit: int = 5) -> str:
    """List the first few names and how many there are."""
    names = list(keys)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _look_up(module: str, table: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[str, tuple[int, ...]] | None:
    """The other name of a module, each of its numbers in turn taken as the one that `*` stands for."""
    if module in table:
        return table[module]
    parts = module.split(".")
    for i, part in enumerate(parts):
        if part.isdecimal() and str(int(part)) == part:
            found = table.get(".".join([*parts[:i], "*", *parts[i + 1 :]]))
            if found is not None:
                return found[0].replace("*", part), found[1]
    return None


def _order(wanted: str, given: str) -> tuple[int, ...]:
    return tuple(given.index(role) for role in wanted)


def _reorder(key: str, tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    if order == (0, 1, 2):
        return tensor
    if tensor.ndim == 0 or tensor.shape[0] % 3:
        raise ValueError(f"tensor {key} packs query, key and value, but its shape is {tuple(tensor.shape)}")
    thirds = tensor.chunk(3)
    return torch.cat([thirds[i] for i in order])


def _to_bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the `backbone.` prefix where nothing stands above the backbone."""
    if all(key.startswith("backbone.") for key in state):
        return {key.removeprefix("backbone."): tensor for key, tensor in state.items()}
    return state


def _from_bare(state: StateDict) -> StateDict:
    if all(key.startswith("stages.") for key in state):
        return {f"backbone.{key}": tensor for key, tensor in state.items()}
    return state
