"""Classes by their names alone: names in templates, through the text tower, to vectors (CLIP, section 3.1)."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from davit.atomic import atomic_write
from davit.inference.backends.native.build import cache_folder
from davit.models.clip import ImageTextModel
from davit.models.zero_shot import ZeroShotClassifier
from davit.records import to_json
from davit.tokens import open_clip, tokenize

if TYPE_CHECKING:
    from torch import Tensor

SETS = {"simple": "SIMPLE_IMAGENET_TEMPLATES", "imagenet": "OPENAI_IMAGENET_TEMPLATES"}  # of open_clip: 7 and 80
_ARTICLES = ("a ", "an ", "the ")
_TEXTS = 256  # computed at once


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What an image-text model is to look for.

    Attributes:
        names: of the classes, as one says them.
        classes: what answers call them; empty for the names themselves.
        templates: sentences with `{}` for a name, whose vectors are averaged; empty for the model's own.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what gives no classes."""
        if not self.names or not all(name.strip() for name in self.names):
            raise ValueError("labels must be names, and at least one; got an empty one")
        called = self.classes or self.names
        if len(called) != len(self.names):
            raise ValueError(f"{len(called)} classes for {len(self.names)} labels: give each its own, or none")
        twice = sorted({name for name in called if called.count(name) > 1})
        if twice:
            raise ValueError(f"labels must differ, got {', '.join(twice[:5])} more than once")
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"a template has {{}} once, where the name goes, got {template!r}")


def parse_labels(given: str, templates: str | None = None) -> Labels:
    """Labels as a command line has them.

    Args:
        given: names between commas, or a file with a name a line.
        templates: a template; "simple" or "imagenet", open_clip's 7 and 80; or a file with a template a line.

    Raises:
        ValueError: no names, or a template without a place for them.
        OSError: a file cannot be read.
    """
    names = _lines(given) or tuple(name.strip() for name in given.split(",") if name.strip())
    return Labels(names=names, templates=parse_templates(templates))


def parse_templates(given: str | None) -> tuple[str, ...]:
    """Templates as a command line has them; see `parse_labels`. None gives none: the model's own."""
    if given is None:
        return ()
    if given in SETS:
        return tuple(template("{}") for template in getattr(open_clip("zero_shot_metadata"), SETS[given]))
    if "{}" in given:
        return (given,)
    if not (found := _lines(given)):
        raise ValueError(
            f"--templates takes a sentence with {{}} for the name, a file of such lines, or {' or '.join(SETS)}; "
            f"got {given!r}"
        )
    return found


def fill(template: str, name: str) -> str:
    """Put a name into a template; a name with an article of its own takes the place of the template's.

    >>> fill("a photo of a {}.", "the red bus")
    'a photo of the red bus.'
    """
    before, after = template.split("{}")
    if name.lower().startswith(_ARTICLES):
        before = next((before.removesuffix(a) for a in _ARTICLES if f" {before}".endswith(f" {a}")), before)
    return f"{before}{name}{after}"


def zero_shot(model: ImageTextModel, labels: Labels) -> ZeroShotClassifier:
    """Make a classifier of an image-text model, which shares its weights.

    Raises:
        ValueError: the tokenizer is not installed.
    """
    return ZeroShotClassifier(model, text_matrix(model, labels), labels.classes or labels.names)


def text_matrix(model: ImageTextModel, labels: Labels) -> "Tensor":
    """The vector of each label, of length 1: the mean over templates; (labels, embedding) float32.

    It is kept in the user's cache folder (`davit/texts`, which may be deleted at any time), under a name that follows
    from the text tower's weights and every text.
    """
    templates = labels.templates or (model.config.head.template,)
    path = _kept(model, labels.names, templates)
    shape = (len(labels.names), model.config.head.embedding)
    if (found := _read(path, shape)) is not None:
        return found
    texts = [fill(template, name) for name in labels.names for template in templates]
    vectors = embed_texts(model, texts).view(len(labels.names), len(templates), -1)
    matrix = F.normalize(vectors.mean(1), dim=-1)
    with suppress(OSError):  # a folder that cannot be written costs the same computation next time, nothing more
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(matrix.numpy().tobytes())
    return matrix


def embed_texts(model: ImageTextModel, texts: Sequence[str]) -> "Tensor":
    """The vector of each text, of length 1, (N, embedding) float32.

    Raises:
        ValueError: the tokenizer is not installed.
    """
    model.eval()
    parameter = next(model.text.parameters())
    parts = [torch.empty(0, model.config.head.embedding)]
    with torch.inference_mode():
        for start in range(0, len(texts), _TEXTS):
            tokens = tokenize(texts[start : start + _TEXTS], model.config.head.text.context)
            parts.append(model.embed_texts(tokens.to(parameter.device)).float().cpu())
    return torch.cat(parts)


def _lines(given: str) -> tuple[str, ...]:
    """The lines of a file of that name; nothing where there is none."""
    with suppress(OSError, ValueError):  # a long row of names is no name of a file
        if Path(given).is_file():
            text = Path(given).read_text(encoding="utf-8-sig")
            return tuple(line.strip() for line in text.splitlines() if line.strip())
    return ()


def _kept(model: ImageTextModel, names: tuple[str, ...], templates: tuple[str, ...]) -> Path:
    digest = hashlib.sha256(json.dumps([names, templates, to_json(model.config.head)]).encode())
    for name, tensor in sorted(model.text.state_dict().items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return cache_folder().parent / "texts" / f"{digest.hexdigest()[:32]}.f32"


def _read(path: Path, shape: tuple[int, int]) -> "Tensor | None":
    """A matrix that was kept; one that is cut short or no row of numbers of length 1 is as good as none."""
    try:
        data = bytearray(path.read_bytes())
    except OSError:
        return None
    if len(data) != 4 * shape[0] * shape[1]:
        return None
    matrix = torch.frombuffer(data, dtype=torch.float32).view(shape)
    lengths = matrix.norm(dim=1)
    return matrix if bool((lengths - 1).abs().lt(1e-3).all()) else None
