"""Pictures with captions: digit scenes described in words, and captions as the text tower reads them."""

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from davit.data.scenes import LARGEST, LEAST_SIDE, ROOM, PlacedDigit, Scenes
from davit.structures import Pair
from davit.tokens import tokenize, tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
_BESIDE = 0.15  # of the side; digits whose middles differ by less than this have no order
MOST_TOLD = 4  # digits of a scene with a caption


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What is said of a picture.

    Attributes:
        text: in words.
        label: a number that pairs share which belong together.
        image: number of the picture, for one may have several captions.
        class_name: the class that the label stands for; empty where it stands for the picture or the caption.
    """

    text: str
    label: int
    image: int
    class_name: str = ""


class CaptionedImages(Protocol):
    """A dataset of pictures with a caption each."""

    def __len__(self) -> int:
        """Count the pairs."""
        ...

    def __getitem__(self, index: int) -> tuple["Image", Caption]:
        """Return a picture and its caption."""
        ...

    def name(self, index: int) -> str:
        """Return what errors call a pair."""
        ...

    def caption(self, index: int) -> str:
        """The caption in words."""
        ...


class CaptionedScenes:
    """Digit scenes, each with a caption that names all its digits and their places, such as "a three above a seven".

    A pair is a pure function of (seed, split, index). Training scenes show training digits only.

    Attributes:
        classes: none: captions say what is there.
        notes: none.
        split: "train" or "test".
    """

    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        split: Literal["train", "test"],
        count: int,
        *,
        seed: int = 0,
        size: int = 128,
        fewest: int = 1,
        most: int = MOST_TOLD,
        sparse: float = 0.0,
        bright: int = 0,
        bend: float = 0.0,
        stroke: float = 0.0,
        first: int = 0,
        first_size: int = 0,
    ) -> None:
        """Describe scenes of `fewest` to `most` digits; see `Scenes`.

        Of the first scenes `first` are small, `first_size` pixels wide, with digits as large as in the others and as
        few as the area holds: it is easier to learn what a digit looks like where there is nothing else.

        Raises:
            ValueError: as `Scenes` does.
        """
        self.split, self.seed, self._first = split, seed, first
        usual: dict[str, Any] = {"seed": seed, "bright": bright, "bend": bend, "stroke": stroke}
        self.scenes = Scenes(split, count, "detection", size=size, fewest=fewest, most=most, sparse=sparse, **usual)
        self._small = self.scenes
        if first:
            if not LEAST_SIDE <= first_size <= size:
                raise ValueError(f"first_size must lie in {LEAST_SIDE} to {size}, got {first_size}")
            few = max(1, round(most * (first_size / size) ** 2))
            largest = min(LARGEST * size, ROOM * first_size)
            self._small = Scenes(split, first, "detection", size=first_size, most=few, largest=largest, **usual)

    def __len__(self) -> int:
        """Count the scenes."""
        return len(self.scenes)

    def __getitem__(self, index: int) -> "tuple[Image, Caption]":
        """Return an RGB picture and its caption; equal captions share a label."""
        text = self.caption(index)
        return self._drawn(index)[index][0], Caption(text=text, label=label_of(text), image=index)

    def name(self, index: int) -> str:
        """Return what errors call a scene."""
        return self.scenes.name(index)

    def caption(self, index: int) -> str:
        """What a scene shows, in words; one digit by its name, two by their order, more by their places."""
        rng = np.random.default_rng((self.seed, ("train", "test").index(self.split), index, 1))
        scenes = self._drawn(index)
        return caption(scenes.placed(index), scenes.side, rng)

    def _drawn(self, index: int) -> Scenes:
        return self._small if index < self._first else self.scenes


def caption(placed: tuple[PlacedDigit, ...], side: int, rng: np.random.Generator) -> str:
    """Describe digits of a square picture, wherever there are two ways to say it by a draw of `rng`."""
    told = [placed[i] for i in rng.permutation(len(placed))]
    if len(told) == 1:  # never with its place, or two captions would be true of one picture
        return named(told[0].digit)
    if len(told) == 2 and rng.random() < 0.5:
        return _ordered(told[0], told[1], side)
    parts = [f"{named(digit.digit)} at the {_place(digit, side)}" for digit in told]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def named(digit: int) -> str:
    """A digit as captions name it: "a three", "an eight"."""
    name = NUMBERS[digit]
    return f"an {name}" if name == "eight" else f"a {name}"


def _middle(digit: PlacedDigit) -> tuple[float, float]:
    left, top, right, bottom = digit.box
    return (left + right) / 2, (top + bottom) / 2


def _place(digit: PlacedDigit, side: int) -> str:
    x, y = _middle(digit)
    row, column = _ROWS[min(int(3 * y / side), 2)], _COLUMNS[min(int(3 * x / side), 2)]
    if row == "middle":
        return "centre" if column == "centre" else column
    return row if column == "centre" else f"{row} {column}"


def _ordered(first: PlacedDigit, second: PlacedDigit, side: int) -> str:
    (x, y), (u, v) = _middle(first), _middle(second)
    across, down = u - x, v - y
    if max(abs(across), abs(down)) < _BESIDE * side:
        relation = "beside"
    elif abs(down) > abs(across):
        relation = "above" if down > 0 else "below"
    else:
        relation = "left of" if across > 0 else "right of"
    return f"{named(first.digit)} {relation} {named(second.digit)}"


class Pairs:
    """Captioned pictures whose captions are tokens.

    Attributes:
        classes: none.
    """

    def __init__(self, images: CaptionedImages, context: int) -> None:
        """Cut captions to `context` tokens.

        Raises:
            ValueError: open_clip, which brings the tokenizer, is not installed.
        """
        self.images, self.context = images, context
        self.classes: tuple[str, ...] = ()
        tokenizer()  # missing packages are told before a run begins

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.images)

    def __getitem__(self, index: int) -> "tuple[Image, Pair]":
        """Return a picture, and its caption as the text tower reads it."""
        image, caption = self.images[index]
        tokens = tokenize([caption.text], self.context)[0]
        return image, Pair(tokens=tokens, label=caption.label, image=caption.image)

    def name(self, index: int) -> str:
        """Return what errors call a picture."""
        return self.images.name(index)

    def caption(self, index: int) -> str:
        """The caption as it was written."""
        return self.images.caption(index)


def label_of(text: str) -> int:
    """A number that stands for a text; 63 bits, so that no two of a billion captions are likely to share one."""
    return int.from_bytes(blake2b(text.strip().lower().encode(), digest_size=8).digest(), "big") >> 1
