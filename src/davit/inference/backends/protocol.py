"""What a predictor needs of whatever computes a model's forward."""

from typing import Any, Literal, Protocol

from torch import Tensor

from davit.preprocessing import Preprocessing

Kind = Literal["classification", "detection", "segmentation"]


class Backend(Protocol):
    """A model's forward, however computed: equal to the model's within a stated tolerance.

    Attributes:
        kind: what the model does, and so what its outputs are.
        preprocessing: what images go through before.
        classes: a name for each class; empty where unknown.
    """

    kind: Kind
    preprocessing: Preprocessing
    classes: tuple[str, ...]

    def __call__(self, images: Tensor) -> Any:  # (B, C, H, W)
        """Return the outputs on the device of the images.

        Classification: logits, (B, classes). Detection: a `DetectorOutput` for each image. Segmentation: logits,
        (B, classes, ceil(H / 4), ceil(W / 4)).
        """
        ...
