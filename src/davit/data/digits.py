"""The built-in data: 1,797 handwritten digits of 8x8 pixels, from scikit-learn, with no download."""

from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

CLASSES = tuple("0123456789")
TEST_EVERY = 5  # the split is fixed: each fifth digit is a test digit


class Digits:
    """Digits as grey pictures with their class.

    Attributes:
        classes: names of the classes, "0" to "9".
        split: "train" (1,437 digits) or "test" (360).
    """

    def __init__(self, split: Literal["train", "test"]) -> None:
        """Hold one side of the fixed split.

        Raises:
            ValueError: an unknown split, or scikit-learn is not installed.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        self.classes = CLASSES
        self.split = split
        pictures, labels = _load()
        chosen = [i for i in range(len(labels)) if (i % TEST_EVERY == 0) == (split == "test")]
        self._pictures = [pictures[i] for i in chosen]
        self.labels = [labels[i] for i in chosen]

    def __len__(self) -> int:
        """Count the digits."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple["Image", int]:
        """Return an 8x8 grey picture, ink bright, and its class."""
        return self._pictures[index], self.labels[index]


@cache
def _load() -> tuple[list["Image"], list[int]]:
    from PIL import Image

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("the digits come with scikit-learn: pip install 'davit[train]'") from error
    pixels, labels = load_digits(return_X_y=True)  # pixels count ink from 0 to 16
    pictures = [Image.fromarray((row.reshape(8, 8) * (255 / 16)).round().astype("uint8")) for row in pixels]
    return pictures, [int(label) for label in labels]
