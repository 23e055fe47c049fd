"""Look for what spoils training or scores, before it does: the checks of a data set, of whatever task."""

from collections.abc import Callable
from pathlib import Path

from davit.data.check_classes import class_findings, folder_findings
from davit.data.check_images import all_image_findings
from davit.data.findings import CheckReport, Finding
from davit.data.folder import split_roots
from davit.data.image_facts import ImageFacts, measure
from davit.data.images import ImageSource, LabelledImages, find_images
from davit.data.ranges import Folder, Store, is_url, open_store
from davit.data.shard_index import INDEX, StoredFile, digest, read_index

Progress = Callable[[int], object]  # is told how many images were looked at


def check_classification(
    root: str | Path,
    *,
    decode: bool = True,
    workers: int = 0,
    started: Callable[[int], object] = lambda _: None,
    progress: Progress = lambda _: None,
) -> CheckReport:
    """Check labelled images: class folders or shards.

    Args:
        root: what `find_images` takes.
        decode: decode every image; otherwise only their bytes and headers are looked at.
        workers: processes that do it; 0 is this one.
        started: told the number of images before the first.
        progress: told after each image.

    Raises:
        ValueError: no images there.
        ShardError: index.json cannot be read, or a sample's bytes cannot.
    """
    source = find_images(root)
    findings = _before(source)
    if any(found.kind.endswith("-shard") for found in findings):  # what they hold cannot be trusted
        return CheckReport.of(str(root), {}, findings)
    parts = {part: source.open(part) for part in source.parts}
    findings += class_findings(parts)
    started(sum(len(images) for images in parts.values()))
    facts = {part: _labelled(images, decode, workers, progress) for part, images in parts.items()}
    findings += all_image_findings(facts)
    return CheckReport.of(str(root), {part: len(images) for part, images in parts.items()}, findings)


def _before(source: ImageSource) -> list[Finding]:
    """What can be said before any image is opened."""
    if not source.sharded:
        return [finding for folder in split_roots(source.root).values() for finding in folder_findings(folder)]
    store = open_store(source.root)
    findings: list[Finding] = []
    for name, part in read_index(store).items():
        if part.skipped:
            message = f"{part.skipped} samples of {name} were left out when the shards were indexed"
            findings.append(Finding(level="warning", kind="skipped", file=store.where(INDEX), message=message))
        if not is_url(source.root):  # over HTTP this would fetch every byte twice
            findings += [finding for shard in part.shards if (finding := shard_finding(store, shard))]
    return findings


def shard_finding(store: Store, shard: StoredFile) -> Finding | None:
    """Say what is wrong with a tar file on this machine, by its size and hash; nothing where it is as indexed."""
    assert isinstance(store, Folder)
    path = store.root / shard.file
    try:
        size = path.stat().st_size
        if size == shard.size and digest(path) == shard.sha256:
            return None
        kind = "changed-shard"
        message = f"has {size:,} of {shard.size:,} bytes" if size != shard.size else "differs from its SHA-256"
    except OSError as error:
        kind, message = "missing-shard", error.strerror or "cannot be read"
    return Finding(level="error", kind=kind, file=str(path), message=f"{message}, as {INDEX} has it")


def _labelled(images: LabelledImages, decode: bool, workers: int, progress: Progress) -> list[tuple[str, ImageFacts]]:
    pairs = []
    for index, fact in enumerate(measure(images, decode=decode, workers=workers)):
        pairs.append((images.classes[int(images.labels[index])], fact))
        progress(1)
    return pairs
