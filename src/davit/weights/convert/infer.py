"""The architecture of a state dict: what its shapes tell, and what the user or the family must add."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from davit.models.config import DaViTConfig
from davit.models.variants import VARIANTS, variant
from davit.weights.checkpoint import Kind
from davit.weights.convert.rename import Format, StateDict, describe

_SEEN = ("in_channels", "widths", "depths", "merge_kernel", "mlp_ratio")  # fields that shapes tell


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What the shapes of our tensors tell."""

    kind: Kind
    in_channels: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    merge_kernel: int
    mlp_ratio: float
    num_classes: int | None

    def __str__(self) -> str:
        """Describe the architecture in one phrase."""
        return f"widths {self.widths}, depths {self.depths} and {self.merge_kernel}x{self.merge_kernel} merging"


def read_shapes(state: StateDict) -> Shapes:
    """Read the architecture off tensors in our spelling.

    Raises:
        ValueError: a tensor that is needed to tell is missing or has the wrong number of axes.
    """
    prefix = "" if any(key.startswith("stages.") for key in state) else "backbone."
    stem = need(state, f"{prefix}stages.0.downsample.proj.weight", 4)
    convs = [need(state, f"{prefix}stages.{s}.downsample.proj.weight", 4) for s in range(4)]
    hidden = need(state, f"{prefix}stages.0.blocks.0.window.mlp.fc1.weight", 2).shape[0]
    head = need(state, "head.weight", 2) if "head.weight" in state else None
    return Shapes(
        kind=_kind(state),
        in_channels=stem.shape[1],
        widths=tuple(conv.shape[0] for conv in convs),
        depths=tuple(_depth(state, f"{prefix}stages.{s}.blocks.") for s in range(4)),
        merge_kernel=convs[1].shape[2],
        mlp_ratio=hidden / stem.shape[0],
        num_classes=None if head is None else head.shape[0],
    )


def choose(
    shapes: Shapes, format: Format, name: str | None, fields: Mapping[str, Any], certain: bool = True
) -> tuple[DaViTConfig, str | None]:
    """Complete the architecture with the window and the attention scale, which shapes cannot tell.

    Args:
        shapes: what the tensors tell.
        format: where they come from, which tells the scale.
        name: a variant, if the user says one.
        fields: fields of the config that the user says.
        certain: a single variant that fits may be taken for granted.

    Returns:
        The config and the variant it was taken from, if any.

    Raises:
        ValueError: the window is unknown, or what the user says does not fit the tensors.
    """
    if name is not None:
        config = variant(name)
    elif "window" in fields:
        config = DaViTConfig(
            in_channels=shapes.in_channels,
            widths=shapes.widths,
            depths=shapes.depths,
            merge_kernel=shapes.merge_kernel,
            mlp_ratio=shapes.mlp_ratio,
            channel_scale=format.scale,
            head_width=fields.get("head_width", 32),
        )
    else:
        config, name = _only_variant(shapes, format, certain)
    config = config.override(**{"in_channels": shapes.in_channels, **fields})
    _check_said(config, shapes)
    if format.reordered and config.channel_scale != "channels":
        raise ValueError(
            f"channel_scale={config.channel_scale!r} does not exist in the {format.name} format, whose attention "
            "always scales by channels: leave it out, or choose a variant with that scale"
        )
    return config, name


def _kind(state: StateDict) -> Kind:
    telling: tuple[tuple[str, Kind], ...] = (
        ("head.weight", "classifier"),
        ("pyramid.", "detector"),
        ("head.pooling.", "segmenter"),
        ("norms.", "dense"),
    )
    return next((kind for start, kind in telling if any(key.startswith(start) for key in state)), "backbone")


def _only_variant(shapes: Shapes, format: Format, certain: bool) -> tuple[DaViTConfig, str]:
    fitting = [name for name, config in VARIANTS.items() if not _differences(config, shapes)]
    likely = [name for name in fitting if VARIANTS[name].channel_scale == format.scale]
    if len(likely) == 1 and certain and format.certain:
        return VARIANTS[likely[0]], likely[0]
    candidates = "".join(
        f'; variant="{name}" (window {VARIANTS[name].window}, scale by {VARIANTS[name].channel_scale})'
        for name in likely or fitting
    )
    raise ValueError(
        f"the window side cannot be told from a {format.name} file with {shapes}"
        f"{candidates or '; no variant has this shape'}. "
        f'Say which with variant="..." or window=7, channel_scale="{format.scale}" '
        "(on the command line --variant, or --window and --channel-scale)"
    )


def _differences(config: DaViTConfig, shapes: Shapes) -> list[str]:
    different = []
    for field in _SEEN[1:]:
        said, seen = getattr(config, field), getattr(shapes, field)
        same = math.isclose(said, seen, rel_tol=0.02) if field == "mlp_ratio" else said == seen
        if not same:
            different.append(f"{field} {seen} where it has {said}")
    return different


def _check_said(config: DaViTConfig, shapes: Shapes) -> None:
    different = _differences(config, shapes)
    if config.in_channels != shapes.in_channels:
        different.append(f"in_channels {shapes.in_channels} where it has {config.in_channels}")
    if different:
        raise ValueError(f"the tensors do not fit the architecture asked for: they have {', '.join(different)}")


def need(state: StateDict, key: str, axes: int) -> Tensor:
    """A tensor by our name.

    Raises:
        ValueError: it is missing or has another number of axes.
    """
    if key not in state:
        raise ValueError(f"tensor {key} (our name) is missing; the file holds {describe(state)}")
    if state[key].ndim != axes:
        raise ValueError(f"tensor {key} (our name) needs {axes} axes, its shape is {tuple(state[key].shape)}")
    return state[key]


def _depth(state: StateDict, prefix: str) -> int:
    blocks = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    if blocks != {str(i) for i in range(len(blocks))}:
        raise ValueError(f"blocks {', '.join(sorted(blocks))} under {prefix} (our name): some are missing")
    if not blocks:
        raise ValueError(f"no blocks under {prefix} (our name)")
    return len(blocks)


def without_training(config: DaViTConfig) -> DaViTConfig:
    """The config as weights keep it: without settings that only concern training."""
    return dataclasses.replace(config, drop_path=0.0, gradient_checkpointing=False)
