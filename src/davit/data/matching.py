"""Which class each folder of images stands for: decided by its name, never by its position."""

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

_SYNSET = re.compile(r"n\d{8}")
_LISTED = 12


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Folders matched with classes.

    Attributes:
        indices: class index of each folder.
        names: a name for each class: the model's, or else ids or numbers.
        missing: those of the classes that have no folder.
        note: how folders were matched, where that was not by the class names themselves; for the user to read.
    """

    indices: dict[str, int]
    names: tuple[str, ...]
    missing: tuple[str, ...] = ()
    note: str = ""


def match_classes(
    found: Sequence[str],
    expected: Sequence[str],
    *,
    num_classes: int | None = None,
    allow_missing: bool = False,
    where: str = "the data",
) -> Matching:
    """Match folders with the classes of a model.

    Folders may carry the class names, WordNet ids (n01440764) or words of ImageNet's classes, or class indices. The
    last only where no class name is a number and there is a folder 0, since counting may also begin at 1.

    Args:
        found: names of folders.
        expected: class names of the model, in order; empty where it has none.
        num_classes: number of logits; by default one for each expected name.
        allow_missing: accept classes that have no folder.
        where: what to call the folders in errors.

    Raises:
        ValueError: a folder fits no class, two fit the same, or a class has none; it lists which.
    """
    count = len(expected) if num_classes is None else num_classes
    named = tuple(expected) or _imagenet_order(found, count)
    if not found:
        raise ValueError(f"{where} holds no class folders: images belong into one folder per class")
    indices, note = _find(found, named, count)
    if not expected and note == "" and indices:
        note = "the model names no classes; its 1,000 are taken for ImageNet's, in the usual order"
    _refuse_shared(indices, where)
    names = named or tuple(str(index) for index in range(count))
    matched = set(indices.values())
    missing = tuple(name for index, name in enumerate(names) if index not in matched)
    extra = [name for name in found if name not in indices]
    if extra or (missing and not allow_missing):
        raise _mismatch(where, extra, missing, names, bool(expected))
    return Matching(indices=indices, names=names, missing=missing, note=note)


def _find(found: Sequence[str], named: Sequence[str], count: int) -> tuple[dict[str, int], str]:
    """Try names, then WordNet, then indices; a way counts only if it fits every folder."""
    by_name = _by_name(found, named)
    if len(by_name) == len(found):
        return by_name, ""
    by_synset = _by_synset(found, named)
    if len(by_synset) == len(found):
        return by_synset, "folders are matched with classes by their WordNet ids"
    numbers = [name.isascii() and name.isdigit() for name in (*found, *named)]
    if "0" in {name.lstrip("0") or "0" for name in found} and all(numbers[: len(found)]):
        in_range = all(int(name) < count for name in found)
        if in_range and not any(numbers[len(found) :]):
            return {name: int(name) for name in found}, "folder names are taken for class indices, counted from 0"
    return by_name, ""


def _by_name(found: Sequence[str], named: Sequence[str]) -> dict[str, int]:
    uses = Counter(named)
    places = {name: index for index, name in enumerate(named) if uses[name] == 1}
    return {name: places[name] for name in found if name in places}


def _by_synset(found: Sequence[str], named: Sequence[str]) -> dict[str, int]:
    if not any(_SYNSET.fullmatch(name) for name in (*found, *named)):
        return {}
    spellings = _synsets()
    places = {spellings[name]: index for index, name in enumerate(named) if name in spellings}
    return {name: places[spellings[name]] for name in found if spellings.get(name) in places}


def _imagenet_order(found: Sequence[str], count: int) -> tuple[str, ...]:
    """Names for a model that has none, if it can only be one of ImageNet."""
    if count != 1000 or not found or not all(_SYNSET.fullmatch(name) for name in found):
        return ()
    from timm.data import ImageNetInfo

    return tuple(str(synset) for synset in ImageNetInfo("imagenet-1k").label_names())


@cache
def _synsets() -> dict[str, str]:
    """WordNet id of each spelling of ImageNet's classes that means only one: the id, all words, the first word."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    meanings: dict[str, set[str]] = defaultdict(set)
    for synset, words in zip(info.label_names(), info.label_descriptions(), strict=True):
        for spelling in (synset, words, words.split(",")[0], f"{words} ({synset})"):
            meanings[spelling].add(synset)
    return {spelling: synsets.pop() for spelling, synsets in meanings.items() if len(synsets) == 1}


def _refuse_shared(indices: dict[str, int], where: str) -> None:
    owners: dict[int, str] = {}
    for name, index in indices.items():
        if index in owners:
            raise ValueError(f"{where}: folders {owners[index]!r} and {name!r} are the same class; merge them")
        owners[index] = name


def _mismatch(
    where: str, extra: Sequence[str], missing: Sequence[str], names: Sequence[str], has_names: bool
) -> ValueError:
    told = []
    if extra:
        told.append(f"{len(extra)} folders fit no class of the model: {_listed([_nearest(n, names) for n in extra])}")
    if missing:
        told.append(f"{len(missing)} classes have no folder with images: {_listed([repr(name) for name in missing])}")
    if not has_names:
        ways = ["the model names no classes, so name the folders after class indices, from 0"]
    else:
        ways = ["rename folders after the classes"]
    ways.append("take the others away" if extra else "or score only the classes that are there with --allow-missing")
    return ValueError(f"{where} does not fit the model: {'; '.join(told)}. Way out: {', '.join(ways)}")


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"{name!r} (did you mean {near[0]!r}?)" if near else repr(name)


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts[:_LISTED]) + (f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else "")
