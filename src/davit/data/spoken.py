"""Names of class folders as one would say them, for models that read."""

from collections.abc import Sequence

from davit.tokens import open_clip


def spoken(classes: Sequence[str]) -> tuple[str, ...]:
    """Turn names of classes into words.

    WordNet ids of ImageNet's classes become the names that CLIP's authors chose for them, as
    open_clip has them; any other name has blanks for underscores.

    Raises:
        ValueError: ImageNet's classes, and open_clip is not installed.
    """
    known = _imagenet() if any(name[:1] == "n" and name[1:].isdigit() for name in classes) else {}
    if known and all(name in known for name in classes):
        return tuple(known[name] for name in classes)
    return tuple(" ".join(name.replace("_", " ").split()) or name for name in classes)


def _imagenet() -> dict[str, str]:
    from timm.data import ImageNetInfo

    synsets, names = ImageNetInfo("imagenet-1k").label_names(), open_clip("zero_shot_metadata").IMAGENET_CLASSNAMES
    return dict(zip(map(str, synsets), names, strict=True))
