"""How a picture is looked at in a test: once, in several sizes, mirrored, or through a window."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from davit.evaluation.sliding import Model, multi_scale, sliding
from davit.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Views:
    """What is averaged into the classes of a picture; by default a picture is looked at once, whole.

    Attributes:
        scales: sizes of a picture, relative to its usual one.
        flip: look at mirror images as well.
        window: height and width of a window that slides over each view; None looks at it whole.
        stride: rows and columns from one window to the next; None takes two thirds of the window, rounded down.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse what leaves nothing, or gaps."""
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales must be above 0, and at least one, got {self.scales}")
        if self.window is None:
            if self.stride is not None:
                raise ValueError(f"stride {self.stride} needs a window")
            return
        steps = self.steps
        if min(*self.window, *steps) < 1 or steps[0] > self.window[0] or steps[1] > self.window[1]:
            raise ValueError(f"stride must lie in 1 to the side of a window, got {steps} and {self.window}")

    @property
    def steps(self) -> tuple[int, int]:
        """The stride in use."""
        assert self.window is not None
        return self.stride or (max(1, 2 * self.window[0] // 3), max(1, 2 * self.window[1] // 3))

    @property
    def several(self) -> bool:
        """Whether sizes or mirror images are made, from the picture in its own size."""
        return self.flip or self.scales != (1.0,)

    @property
    def plain(self) -> bool:
        """Whether a picture is looked at once, whole."""
        return not self.several and self.window is None

    def prepared(self, usual: Preprocessing) -> Preprocessing:
        """What pictures go through before these views are made.

        Args:
            usual: the model's preprocessing.

        Raises:
            ValueError: sizes are to be made of a picture that the model wants cropped or squashed.
        """
        if not self.several:
            return usual
        if usual.fit != "within":
            raise ValueError(
                f"several scales need a model whose pictures keep their shape, this one has them {usual.fit}"
            )
        return _OwnSize(**{field.name: getattr(usual, field.name) for field in fields(usual)})

    def of(self, model: Model, usual: Preprocessing) -> Callable[[Tensor], Tensor]:
        """A function from prepared images (B, C, height, width), all of one size, to scores of each class.

        It returns logits of the whole image, (B, K, height, width), of windows and of a plain look those of the model,
        and probabilities where there are several views.

        Args:
            model: gives the logits of images, of any size.
            usual: the model's preprocessing.
        """

        def windows(images: Tensor) -> Tensor:
            assert self.window is not None
            return sliding(model, images, self.window, self.steps)

        def views(images: Tensor) -> Tensor:
            short, long = sorted(images.shape[-2:])
            scale = min(usual.size[0] / short, usual.size[1] / long)
            return multi_scale(one, images, scale, self.scales, flip=self.flip)

        one = model if self.window is None else windows
        return views if self.several else one

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; sides are height and width."""
        window = None if self.window is None else list(self.window)
        return {
            "scales": list(self.scales),
            "flip": self.flip,
            "window": window,
            "stride": None if window is None else list(self.steps),
        }


@dataclass(frozen=True, kw_only=True)
class _OwnSize(Preprocessing):
    """The same without a resize."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the picture."""
        return height, width
