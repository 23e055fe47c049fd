"""Texts as tokens, by open_clip's tokenizer."""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def tokenize(texts: "Sequence[str]", context: int) -> "Tensor":
    """Texts as CLIP's byte-pair tokens between a start and an end, zeros behind; (N, context) int64.

    A text of more than `context` tokens is cut, and still ends with the end.

    Raises:
        ValueError: open_clip is not installed.
    """
    return tokenizer()(list(texts), context_length=context)


@cache
def tokenizer() -> Any:
    """open_clip's tokenizer.

    Raises:
        ValueError: it is not installed.
    """
    return open_clip("tokenizer").SimpleTokenizer()


def open_clip(module: str) -> Any:
    """A module of open_clip, which brings tokenizer, templates and ImageNet's names.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return import_module(f"open_clip.{module}")
    except ImportError as error:
        raise ValueError("what reads texts takes open_clip: pip install 'davit[image-text]'") from error
