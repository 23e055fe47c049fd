"""The authors' UPerNet checkpoints (github.com/dingmyu/davit under mmsegmentation), whose backbone is the dense one."""

from collections.abc import Mapping

from torch import Tensor

from davit.weights.convert.official import OFFICIAL_DENSE
from davit.weights.convert.rename import Rule, StateDict, describe

LEVELS = 4
_BACKBONE = "backbone."
_OF_BACKBONE = ("backbone.", "norms.")
_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def to_ours(state: StateDict) -> dict[str, Tensor]:
    """Rename a state dict of theirs to that of our `Segmenter`; each tensor is used exactly once.

    Raises:
        ValueError: tensors that their UPerNet does not have.
    """
    backbone = {key.removeprefix(_BACKBONE): tensor for key, tensor in state.items() if key.startswith(_BACKBONE)}
    heads = {key: tensor for key, tensor in state.items() if not key.startswith(_BACKBONE)}
    table = {rule.theirs: rule.ours for rule in _rules(_pools(heads, "decode_head.psp_modules."))}
    return OFFICIAL_DENSE.to_ours(backbone) | _rename(heads, table, "not in mmsegmentation's UPerNet")


def from_ours(state: StateDict) -> dict[str, Tensor]:
    """Invert `to_ours`, to the bit.

    Raises:
        ValueError: tensors that are not of a `Segmenter`.
    """
    backbone = {key: tensor for key, tensor in state.items() if key.startswith(_OF_BACKBONE)}
    heads = {key: tensor for key, tensor in state.items() if not key.startswith(_OF_BACKBONE)}
    table = {rule.ours: rule.theirs for rule in _rules(_pools(heads, "head.pooling.pooled."))}
    theirs = {_BACKBONE + key: tensor for key, tensor in OFFICIAL_DENSE.from_ours(backbone).items()}
    return theirs | _rename(heads, table, "without a place in mmsegmentation's UPerNet")


def _rules(pools: int) -> tuple[Rule, ...]:
    """The table of both heads; pooling comes in as many sizes as the file has."""
    convs = {
        "head.pooling.fusion": "decode_head.bottleneck",
        "head.fusion": "decode_head.fpn_bottleneck",
        "auxiliary.conv": "auxiliary_head.convs.0",
    }
    # Entry 0 of each pooling is the average, which has no tensors.
    convs |= {f"head.pooling.pooled.{i}": f"decode_head.psp_modules.{i}.1" for i in range(pools)}
    convs |= {f"head.laterals.{i}": f"decode_head.lateral_convs.{i}" for i in range(LEVELS - 1)}
    convs |= {f"head.outputs.{i}": f"decode_head.fpn_convs.{i}" for i in range(LEVELS - 1)}
    parts = (("conv", "conv"), ("norm", "bn"))
    return (
        *(Rule(f"{ours}.{part}", f"{theirs}.{name}") for ours, theirs in convs.items() for part, name in parts),
        Rule("head.classifier", "decode_head.conv_seg"),
        Rule("auxiliary.classifier", "auxiliary_head.conv_seg"),
    )


def _pools(state: StateDict, prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)})


def _rename(state: StateDict, table: Mapping[str, str], complaint: str) -> dict[str, Tensor]:
    unknown = [key for key in state if key.rpartition(".")[0] not in table or key.rpartition(".")[2] not in _LEAVES]
    if unknown:
        raise ValueError(f"{len(unknown)} of {len(state)} tensors {complaint}: {describe(unknown)}")
    parts = ((*key.rpartition("."), tensor) for key, tensor in state.items())
    return {f"{table[module]}.{leaf}": tensor for module, _, leaf, tensor in parts}
