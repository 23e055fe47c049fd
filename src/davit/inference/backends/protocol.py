"""What a predictor needs of whatever computes a model's forward."""

from typing import Protocol

from torch import Tensor

from davit.preprocessing import Preprocessing


class Backend(Protocol):
    """A model's forward, however computed: equal to the model's within a stated tolerance.

    Attributes:
        preprocessing: what images go through before.
        classes: a name for each logit; empty where unknown.
    """

    preprocessing: Preprocessing
    classes: tuple[str, ...]

    def __call__(self, images: Tensor) -> Tensor:  # (B, C, H, W)
        """Return logits, (B, classes), on the device of the images."""
        ...
