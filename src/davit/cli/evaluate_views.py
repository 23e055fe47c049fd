"""How the flags of `davit evaluate` say what a segmenter looks at."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from davit.evaluation.views import Views


def parse_views(scales: str | None, flip: bool, window: str | None, stride: str | None) -> "Views":
    """Read --scales, --flip, --window and --stride.

    Raises:
        ValueError: no numbers, or ones that cannot be used.
    """
    from davit.evaluation.views import Views

    if stride is not None and window is None:
        raise ValueError("--stride goes with --window")
    return Views(
        scales=(1.0,) if scales is None else _scales(scales),
        flip=flip,
        window=None if window is None else _sides("--window", window),
        stride=None if stride is None else _sides("--stride", stride),
    )


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--scales takes numbers divided by commas, such as 0.5,0.75,1, got {text!r}") from None


def _sides(flag: str, text: str) -> tuple[int, int]:
    """`512`, or height and width, `512x1024`."""
    height, _, width = text.partition("x")
    try:
        return int(height), int(width or height)
    except ValueError:
        raise ValueError(
            f"{flag} takes a height and a width in pixels, such as 512x1024, or 512, got {text!r}"
        ) from None


def refuse_options(what: str, given: dict[str, bool]) -> None:
    """Refuse options that would be passed over in silence."""
    if found := [option for option, is_given in given.items() if is_given]:
        raise ValueError(f"{what} takes no {' and no '.join(found)}: leave that out")
