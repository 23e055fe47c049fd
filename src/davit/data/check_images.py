"""What is wrong with single images, and which are copies of others; the same for every task."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from davit.data.findings import Finding, Level
from davit.data.image_facts import ImageFacts

TINY_SIDE = 4  # pixels
HUGE = 50_000_000  # pixels
LONGEST = 10  # long side over short side
AREA_FACTOR = 16  # an area is an outlier from this many times the median, or its part, ...
BLANK_FACTOR = 12  # and so few bytes a pixel suspicious,
SPREADS = 6  # if it is also that many deviations away from the median
FEWEST = 20  # images, for a median to mean anything
_FORMS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".mpo": "JPEG", ".png": "PNG", ".bmp": "BMP",
    ".gif": "GIF", ".ico": "ICO", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP", ".avif": "AVIF", ".ppm": "PPM",
    ".pgm": "PPM",
}  # fmt: skip
_DEEP = ("I", "F")  # with all variants of I;16
Labelled = tuple[str, str, ImageFacts]  # part, what it is labelled as, the image; labels are only compared


def image_findings(images: Iterable[ImageFacts]) -> Iterator[Finding]:
    """Say what is odd about images, one by one."""
    for image in images:
        if image.fault:
            yield _about(image, "error", image.fault, image.reason)
            continue
        yield from _shape(image)
        form = "JPEG" if image.form == "MPO" else image.form
        suffix = PurePosixPath(image.name).suffix.lower()
        if _FORMS.get(suffix, form) != form:
            yield _about(image, "warning", "wrong-extension", f"is a {form} file by its content")
        if image.frames > 1 and form != "JPEG":
            yield _about(image, "note", "animated", f"has {image.frames} frames or pages, of which the first counts")
        if image.mode == "CMYK":
            yield _about(image, "note", "cmyk", "is in print colours, which are converted without its profile")
        if image.mode.startswith(_DEEP):
            yield _about(image, "note", "deep-grey", "has more than 8 bits a pixel, which are scaled down")


def _shape(image: ImageFacts) -> Iterator[Finding]:
    shape = f"has {image.width}x{image.height} pixels"
    short, long = sorted((image.width, image.height))
    if short < TINY_SIDE:
        yield _about(image, "warning", "tiny", shape)
    elif long > LONGEST * short:
        yield _about(image, "warning", "extreme-ratio", shape)
    if image.width * image.height > HUGE:
        yield _about(image, "warning", "huge", f"{shape}: decoding takes a second or more")


def outlier_findings(images: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Find images of quite another size than the rest, and those that are nearly blank: they compress too well."""
    good = [image for image in images if not image.fault and min(image.width, image.height) >= TINY_SIDE]
    areas = [math.log(image.width * image.height) for image in good]
    for image, area, middle in _far(good, areas, math.log(AREA_FACTOR)):
        times = math.exp(abs(area - middle))
        which = "larger" if area > middle else "smaller"
        shape = f"{image.width}x{image.height} pixels"
        yield _about(image, "warning", "size-outlier", f"has {shape}, {times:.0f} times {which} than the median")
    for form in sorted({image.form for image in good}):
        same = [image for image in good if image.form == form]
        shares = [math.log(image.size / (image.width * image.height)) for image in same]
        for image, share, middle in _far(same, shares, math.log(BLANK_FACTOR)):
            if share < middle:
                times = math.exp(middle - share)
                yield _about(image, "warning", "nearly-blank", f"has {times:.0f} times fewer bytes a pixel than others")


def _far(
    images: Sequence[ImageFacts], values: Sequence[float], least: float
) -> Iterator[tuple[ImageFacts, float, float]]:
    if len(images) < FEWEST:
        return
    middle = statistics.median(values)
    deviation = 1.4826 * statistics.median(abs(value - middle) for value in values)
    limit = max(least, SPREADS * deviation)
    for image, value in zip(images, values, strict=True):
        if abs(value - middle) > limit:
            yield image, value, middle


def duplicate_findings(images: Sequence[Labelled]) -> Iterator[Finding]:
    """Find images that are there twice: as files, or as pictures in other formats.

    A copy on another side of the split makes scores too good; one with another label cannot be learnt.
    """
    groups: dict[str, list[Labelled]] = defaultdict(list)
    for part, label, image in images:
        key = image.pixels_hash or image.sha256
        if key and not image.fault:
            groups[key].append((part, label, image))
    for group in groups.values():
        for position, copy in enumerate(group[1:], 1):
            yield _copy(copy, group[:position])


def _copy(copy: Labelled, before: Sequence[Labelled]) -> Finding:
    """The gravest that a copy does to those before it."""
    part, label, image = copy
    other_part = [entry for entry in before if entry[0] != part]
    other_label = [entry for entry in before if entry[1] != label]
    first = (other_part or other_label or before)[0]
    what = "file" if first[2].sha256 == image.sha256 else "picture, in another file,"
    also = f", labelled {first[1]!r} there and {label!r} here" if first[1] != label else ""
    if other_part:
        return _about(image, "error", "leak", f"is the same {what} as {first[2].name} of {first[0]}{also}")
    if other_label:
        return _about(image, "error", "two-labels", f"is the same {what} as {first[2].name}{also}")
    return _about(image, "warning", "duplicate", f"is the same {what} as {first[2].name}")


def _about(image: ImageFacts, level: Level, kind: str, message: str) -> Finding:
    return Finding(level=level, kind=kind, file=image.name, message=message)


def all_image_findings(parts: Mapping[str, Sequence[tuple[str, ImageFacts]]]) -> Iterator[Finding]:
    """All of this file, for parts of (label, image) pairs."""
    everything = [(part, label, image) for part, pairs in parts.items() for label, image in pairs]
    images = [image for _, _, image in everything]
    yield from image_findings(images)
    yield from outlier_findings(images)
    yield from duplicate_findings(everything)
