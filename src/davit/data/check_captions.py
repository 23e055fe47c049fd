"""The checks of pictures with captions."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from davit.data.caption_files import TABLES, CaptionFiles, caption_roots, find_captions
from davit.data.caption_index import read_caption_index
from davit.data.caption_shards import CaptionShards
from davit.data.check import shard_finding
from davit.data.check_images import all_image_findings
from davit.data.findings import CheckReport, Finding
from davit.data.image_facts import ImageFacts, PictureFiles, measure
from davit.data.ranges import ShardError, is_url, open_store
from davit.data.shard_index import INDEX
from davit.decoding import SUFFIXES

CONTEXT = 77  # tokens that CLIP's text towers read
_LOOKED_AT = 20_000  # captions of each part, evenly spread
_FIRST = 100  # pictures, of which one must have a text beside it for a folder to hold captions
_COMMON = 0.01  # share of the captions from which on one text is no description
_FEWEST = 20  # captions alike, for that to mean anything
_SHOWN = 60  # characters of a caption in a message

_Part = CaptionFiles | CaptionShards


def is_captions(root: str | Path) -> bool:
    """Whether a root holds captions: shards with captions, a table of them, or text files beside pictures."""
    if is_url(root) or (Path(root) / INDEX).is_file():
        try:
            return bool(read_caption_index(open_store(root)))
        except ShardError:
            return False
    path = Path(root)
    if path.is_file():
        return path.suffix in TABLES
    folders = (path, path / "train", path / "val")
    if any((folder / f"captions{suffix}").is_file() for folder in folders for suffix in TABLES):
        return True
    pictures = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else ()
    return any(picture.with_suffix(".txt").is_file() for picture in islice(pictures, _FIRST))


def check_captions(
    root: str | Path,
    *,
    decode: bool = True,
    workers: int = 0,
    started: Callable[[int], object] = lambda _: None,
    progress: Callable[[int], object] = lambda _: None,
) -> CheckReport:
    """Check pictures with captions; see `check_classification` for the arguments.

    Raises:
        ValueError: a table that cannot be read, or none.
        ShardError: index.json cannot be read, or a sample's bytes cannot.
    """
    findings: list[Finding] = []
    sharded = is_url(root) or (Path(root) / INDEX).is_file()
    if sharded and not is_url(root):
        store = open_store(root)
        parts = read_caption_index(store).values()
        findings = [found for part in parts for shard in part.shards if (found := shard_finding(store, shard))]
        if findings:  # what they hold cannot be trusted
            return CheckReport.of(str(root), {}, findings)
    opened = _opened(root, sharded)
    pictures = {name: _pictures(part) for name, part in opened.items()}
    started(sum(map(len, pictures.values())))
    facts: dict[str, list[tuple[str, ImageFacts]]] = {}
    for name, files in pictures.items():
        facts[name] = []
        for fact in measure(files, decode=decode, workers=workers):
            facts[name].append(("", fact))
            progress(1)
    findings += all_image_findings(facts)
    for part in opened.values():
        findings += _caption_findings(part)
    return CheckReport.of(str(root), {name: len(files) for name, files in pictures.items()}, findings)


def _opened(root: str | Path, sharded: bool) -> dict[str, _Part]:
    if sharded:
        return {name: CaptionShards(root, name) for name in read_caption_index(open_store(root))}
    return {name: find_captions(place) for name, place in caption_roots(root).items()}


class _ShardPictures:
    """The pictures of shards, each once."""

    def __init__(self, shards: CaptionShards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return self.shards.pictures

    def file(self, index: int) -> tuple[str, bytes]:
        return self.shards.picture(index)

    def name(self, index: int) -> str:
        return self.shards.picture(index)[0]


def _pictures(part: _Part) -> PictureFiles | _ShardPictures:
    return _ShardPictures(part) if isinstance(part, CaptionShards) else PictureFiles(list(dict.fromkeys(part.paths)))


def _caption_findings(part: _Part) -> Iterator[Finding]:
    for note in part.notes:
        yield Finding(level="warning", kind="no-caption", file=note.partition(":")[0], message=note)
    chosen = range(0, len(part), -(-len(part) // _LOOKED_AT))
    texts = [part.caption(index) for index in chosen]
    for text, count in Counter(text.lower() for text in texts).most_common():
        if count < max(_FEWEST, _COMMON * len(texts)):
            break
        message = f"is the caption of {count} of {len(texts)} pairs: it tells no picture from another"
        yield Finding(level="warning", kind="common-caption", file=repr(_short(text)), message=message)
    if isinstance(part, CaptionFiles):
        pairs = Counter((path, caption.text) for path, caption in zip(part.paths, part.captions, strict=True))
        for (path, text), count in pairs.items():
            if count > 1:
                message = f"has the caption {_short(text)!r} {count} times"
                yield Finding(level="warning", kind="repeated-caption", file=str(path), message=message)
    yield from _long(part, chosen, texts)


def _long(part: _Part, chosen: Sequence[int], texts: Sequence[str]) -> Iterator[Finding]:
    """Captions that the text tower will not read to their end."""
    from davit.tokens import tokenizer

    try:
        encode = tokenizer().encode
    except ValueError:  # not installed: nothing will be trained here either
        return
    long = [index for index, text in zip(chosen, texts, strict=True) if len(encode(text)) > CONTEXT - 2]
    if long:
        message = f"{len(long)} of {len(texts)} captions are cut at {CONTEXT} tokens, the first at this picture"
        yield Finding(level="note", kind="long-caption", file=part.name(long[0]), message=message)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
