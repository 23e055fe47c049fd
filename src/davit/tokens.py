"""Texts as tokens, by open_clip's tokenizer."""

from functools import cache
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
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError as error:
        raise ValueError("texts are read by open_clip's tokenizer: pip install 'davit[image-text]'") from error
    return SimpleTokenizer()
