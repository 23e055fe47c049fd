"""Pictures with captions on disk: a table, COCO's captions, or a text file beside each picture."""

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from davit.data.captions import Caption, label_of
from davit.decoding import SUFFIXES, read_image, show_path

if TYPE_CHECKING:
    from PIL.Image import Image

TABLES = (".csv", ".tsv", ".jsonl", ".json", ".txt")
_FILE = ("image", "file", "filename", "file_name", "filepath", "path", "img")
_TEXT = ("caption", "text", "title", "captions", "sentence", "raw")
_LABEL = ("label", "class")
_FOLDERS = (".", "images", "Images")
NAMED = 3  # files named where something is wrong with several
_Row = tuple[str, Any, str]  # file, what stands for its caption, label


@dataclass(frozen=True)
class CaptionFiles:
    """Pictures in files, as many pairs as they have captions.

    Attributes:
        paths: picture of each pair.
        captions: its caption, without blanks around it, and what it belongs to.
        notes: what was left out.
    """

    paths: tuple[Path, ...]
    captions: tuple[Caption, ...]
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.paths)

    def __getitem__(self, index: int) -> "tuple[Image, Caption]":
        """Return a picture and its caption.

        Raises:
            ImageError: the picture cannot be decoded.
        """
        return read_image(self.paths[index]), self.captions[index]

    def name(self, index: int) -> str:
        """Return what errors call a pair."""
        return show_path(self.paths[index])

    def caption(self, index: int) -> str:
        """The caption of a pair."""
        return self.captions[index].text

    def part(self, keep: Callable[[int], bool]) -> "CaptionFiles":
        """The pairs of those pictures whose number `keep` wants."""
        chosen = [i for i, caption in enumerate(self.captions) if keep(caption.image)]
        paths, captions = tuple(self.paths[i] for i in chosen), tuple(self.captions[i] for i in chosen)
        return replace(self, paths=paths, captions=captions)


def caption_roots(root: str | Path) -> dict[str, Path]:
    """`train` and `val`, where a folder has both; otherwise the root itself, as `all`."""
    parts = {name: Path(root) / name for name in ("train", "val")}
    return parts if all(part.is_dir() for part in parts.values()) else {"all": Path(root)}


def find_captions(root: str | Path) -> CaptionFiles:
    """Read pictures and captions.

    Args:
        root: a table (CSV or TSV with a line of column names or without, JSON lines, COCO's caption JSON), whose files
            lie beside it or in `images/`; or a folder with one such table called captions, or with a text file beside
            each picture, whose lines are its captions. Columns are called as usual: image, file or filepath; caption,
            text or title; and label, where pictures of one class belong together.

    Returns:
        All pairs whose caption is not empty; notes count and name the others.

    Raises:
        ValueError: no captions, unknown columns, or pictures that are not there.
        OSError: a file cannot be read.
    """
    path = Path(root)
    if path.is_dir():
        tables = [path / f"captions{suffix}" for suffix in TABLES if (path / f"captions{suffix}").is_file()]
        if len(tables) > 1:
            raise ValueError(f"{path} holds {' and '.join(t.name for t in tables)}: say which one, data.root=FILE")
        if not tables:
            return _build(path, _beside(path), [path])
        path = tables[0]
    if not path.is_file():
        raise ValueError(f"{path} is not there, expected a table of captions or a folder with one")
    if path.suffix not in TABLES:
        raise ValueError(f"{path}: a table of captions ends in one of {', '.join(TABLES)}")
    folders = [path.parent / name for name in _FOLDERS]
    return _build(path, _rows(path), folders)


def split_captions(found: CaptionFiles, share: float, seed: int = 0) -> tuple[CaptionFiles, CaptionFiles]:
    """Split into pairs for training and for validation; all captions of a picture stay together.

    The side of a picture follows from the seed and its name; there is at least one on each side.

    Raises:
        ValueError: fewer than two pictures.
    """
    names = {caption.image: path.name for path, caption in zip(found.paths, found.captions, strict=True)}
    if len(names) < 2:
        raise ValueError(f"{found.name(0)} is the only picture: a run needs one to learn from and one for validation")
    order = sorted(names, key=lambda image: label_of(f"{seed} {names[image]}"))
    held_out = set(order[: min(max(round(share * len(order)), 1), len(order) - 1)])
    return found.part(lambda image: image not in held_out), found.part(lambda image: image in held_out)


def _rows(path: Path) -> Iterator[_Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from error
    if path.suffix == ".jsonl":
        return _of_objects(
            path, [_object(path, i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
        )
    if path.suffix == ".json":
        return _of_json(path, text)
    return _of_table(path, text)


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: no JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}, line {number}: expected an object with a file and a caption")
    return found


def _of_json(path: Path, text: str) -> Iterator[_Row]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error
    if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        return _of_objects(path, found)
    try:
        files = {entry["id"]: entry["file_name"] for entry in found["images"]}
        return iter([(files[entry["image_id"]], entry.get("caption"), "") for entry in found["annotations"]])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: neither a list of objects nor COCO's captions: {error} is missing") from error


def _of_objects(path: Path, found: list[dict[str, Any]]) -> Iterator[_Row]:
    keys = list(dict.fromkeys(key for entry in found for key in entry))
    file, text, label = _columns(path, keys)
    for entry in found:
        several = entry.get(text)
        for one in several if isinstance(several, list) and several else [several]:
            yield str(entry.get(file, "")), one, str(entry.get(label, "")) if label else ""


def _of_table(path: Path, text: str) -> Iterator[_Row]:
    lines = text.splitlines()
    tabbed = path.suffix == ".tsv" or (path.suffix == ".txt" and bool(lines) and "\t" in lines[0])
    rows = [row for row in csv.reader(lines, delimiter="\t" if tabbed else ",") if row]
    if not rows:
        return
    names = [name.strip().lower() for name in rows[0]]
    if any(name in _FILE for name in names):
        file, caption, label = _columns(path, names)
        places = [names.index(file), names.index(caption), names.index(label) if label else -1]
        rows = rows[1:]
    elif len(names) == 2 and Path(names[0]).suffix in SUFFIXES:
        places = [0, 1, -1]
    else:
        raise ValueError(
            f"{path}: its first line names no column of files ({', '.join(_FILE)}), and is no picture and its caption"
        )
    for row in rows:
        cells = [row[place].strip() if 0 <= place < len(row) else "" for place in places]
        yield cells[0], cells[1], cells[2]


def _columns(path: Path, names: list[str]) -> tuple[str, str, str]:
    def one(known: tuple[str, ...]) -> str:
        return next((name for name in known if name in names), "")

    file, text, label = one(_FILE), one(_TEXT), one(_LABEL)
    if not file or not text:
        wanted, known = ("captions", _TEXT) if file else ("files", _FILE)
        raise ValueError(f"{path} has no column of {wanted}: name one of {', '.join(known)}; it has {', '.join(names)}")
    return file, text, label


def _beside(folder: Path) -> Iterator[_Row]:
    """Pictures with a text file of the same name."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            texts = path.with_suffix(".txt")
            lines = texts.read_text(encoding="utf-8-sig").splitlines() if texts.is_file() else [None]
            yield from ((str(path.relative_to(folder)), line, "") for line in lines or [""])


def _build(where: Path, rows: Iterator[_Row], folders: list[Path]) -> CaptionFiles:
    places: dict[str, Path | None] = {}
    numbers: dict[str, int] = {}
    left: dict[str, list[str]] = defaultdict(list)
    paths: list[Path] = []
    captions: list[Caption] = []
    for file, given, label in rows:
        text = given.strip() if isinstance(given, str) else ""
        if not text:
            left["without a caption" if given is None else "with an empty caption"].append(file)
            continue
        if file not in places:
            places[file] = next((folder / file for folder in folders if file and (folder / file).is_file()), None)
        path = places[file]
        if path is None:
            left["not there"].append(file)
            continue
        number = numbers.setdefault(file, len(numbers))
        paths.append(path)
        whose = label_of(f"class {label}" if label else f"image {file}")
        captions.append(Caption(text=text, label=whose, image=number, class_name=label))
    if gone := left.pop("not there", None):
        raise ValueError(f"{where} names {len(set(gone))} pictures that are not there: {_named(gone)}; mend it")
    if not paths:
        raise ValueError(
            f"{where} holds no pictures with captions: expected captions.csv, .tsv, .jsonl or .json, or a text file "
            "beside each picture"
        )
    notes = tuple(
        f"{where}: {len(files)} pictures {what} are left out: {_named(files)}" for what, files in left.items()
    )
    return CaptionFiles(tuple(paths), tuple(captions), notes)


def _named(files: list[str]) -> str:
    several = list(dict.fromkeys(files))
    return ", ".join(several[:NAMED]) + (" and others" if len(several) > NAMED else "")
