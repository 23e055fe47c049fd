"""The built-in data by name, and its test images: what runs of the recipes `digits...` are scored on."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from davit.data.digits import CLASSES, Digits

if TYPE_CHECKING:
    from davit.data.captions import CaptionedScenes
    from davit.data.scenes import Scenes

KINDS = {
    "digits": "classification",
    "digits.detection": "detection",
    "digits.retinanet": "detection",
    "digits.segmentation": "segmentation",
    "digits.contrastive": "image_text",
}


class DigitsOfTest(Digits):
    """The 360 test digits, as labelled images of a folder are."""

    root, note, skipped = "digits", "", 0
    missing: tuple[str, ...] = ()

    def __init__(self) -> None:
        """Hold them."""
        super().__init__("test")


def is_builtin(data: str) -> bool:
    """Whether `data` names built-in images; a folder of that name goes first."""
    return data in KINDS and not Path(data).exists()


def digits_of_test(data: str, classes: Sequence[str], count: int) -> DigitsOfTest:
    """Test digits for a classifier.

    Raises:
        ValueError: images of another kind, or a model that knows other classes.
    """
    _expect(data, "classification")
    if tuple(classes) not in ((), CLASSES) or count != len(CLASSES):
        raise ValueError(_other_classes(data, classes, CLASSES))
    return DigitsOfTest()


def scenes_of_test(data: str, kind: str, classes: Sequence[str]) -> "Scenes":
    """Test scenes for a detector or segmenter.

    Raises:
        ValueError: images of another kind, or a model that knows other classes.
    """
    from davit.data.scenes import Scenes
    from davit.train.sides import MOST_TEST_SCENES

    _expect(data, kind)
    scenes = Scenes("test", MOST_TEST_SCENES, "detection" if kind == "detection" else "segmentation")
    if tuple(classes) not in ((), scenes.classes):
        raise ValueError(_other_classes(data, classes, scenes.classes))
    return scenes


def captions_of_test(data: str, side: int) -> "CaptionedScenes":
    """Test scenes with captions.

    Raises:
        ValueError: images of another kind.
    """
    from davit.data.captions import CaptionedScenes
    from davit.train.sides import MOST_TEST_SCENES

    _expect(data, "image_text")
    return CaptionedScenes("test", MOST_TEST_SCENES, size=side)


def _expect(data: str, kind: str) -> None:
    if KINDS[data] != kind:
        fitting = [f"--data {name}" for name, of in KINDS.items() if of == kind]
        way = f"take {' or '.join(fitting)}" if fitting else "there are no built-in images for it"
        raise ValueError(f"{data} is for {KINDS[data]}, and this is a model for {kind}: {way}")


def _other_classes(data: str, classes: Sequence[str], wanted: Sequence[str]) -> str:
    known = ", ".join(classes[:3]) + ", ..." * (len(classes) > 3)
    return f"{data} has the classes {', '.join(wanted)}, and this model knows {known or 'another number of classes'}"
