"""The text tower of an open_clip checkpoint, or of an image-text model of ours."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from davit.models.clip_config import ImageTextConfig, ImageTextHead, TextConfig
from davit.models.text import TextTower
from davit.weights.checkpoint import is_checkpoint, read_checkpoint
from davit.weights.convert.rename import StateDict, describe
from davit.weights.source import find_file, read_content

_TABLE = "token_embedding.weight"
_HEAD_WIDTH = 64  # of every text tower of CLIP and open_clip; tensors do not tell


def read_text_tower(source: str | Path, head: ImageTextHead) -> dict[str, Tensor]:
    """Read the tensors of a text tower, by the names of `TextTower`, float32.

    Args:
        source: a checkpoint of open_clip or OpenAI (its text tower at the top or under `text.`), or an image-text model
            of ours.
        head: what the tower must fit; `quick_gelu` is believed, for tensors do not tell.

    Raises:
        ValueError: no text tower, or one of another size: it says which settings fit.
        OSError: the file cannot be read.
    """
    path = find_file(source)
    if not path.is_file():
        raise ValueError(f"{source} is not there, expected a checkpoint of open_clip")
    if is_checkpoint(path):
        tensors, text, embedding = _of_ours(path)
    else:
        tensors = _find(read_content(path).tensors, path)
        text, embedding = _sizes(tensors, path)
    if replace(text, quick_gelu=head.text.quick_gelu) != head.text or embedding != head.embedding:
        raise ValueError(
            f"{path} holds a text tower of another size: give model.head.embedding={embedding} "
            f"model.head.text.width={text.width} model.head.text.layers={text.layers} "
            f"model.head.text.heads={text.heads} model.head.text.context={text.context} "
            f"model.head.text.vocabulary={text.vocabulary}"
        )
    return {name: tensor.float() for name, tensor in tensors.items()}


def _of_ours(path: Path) -> tuple[dict[str, Tensor], TextConfig, int]:
    header, tensors = read_checkpoint(path)
    if not isinstance(header.config, ImageTextConfig):
        raise ValueError(f"{path} is a {header.kind}, which has no text tower")
    own = {name.removeprefix("text."): tensor for name, tensor in tensors.items() if name.startswith("text.")}
    return own, header.config.head.text, header.config.head.embedding


def _find(state: StateDict, path: Path) -> dict[str, Tensor]:
    prefixes = [name.removesuffix(_TABLE) for name in state if name.endswith(_TABLE)]
    if len(prefixes) != 1 or f"{prefixes[0]}text_projection" not in state:
        raise ValueError(
            f"{path} holds no text tower as open_clip builds it ({_TABLE}, text_projection); it has {describe(state)}"
        )
    prefix = prefixes[0]
    parts = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix) and name.removeprefix(prefix).startswith(parts)
    }


def _sizes(tensors: StateDict, path: Path) -> tuple[TextConfig, int]:
    vocabulary, width = tensors[_TABLE].shape
    layers = 1 + max(
        (int(name.split(".")[2]) for name in tensors if name.startswith("transformer.resblocks.")), default=-1
    )
    if "positional_embedding" not in tensors or not layers:
        raise ValueError(f"{path} holds a part of a text tower only: {describe(tensors)}")
    config = TextConfig(
        context=len(tensors["positional_embedding"]),
        vocabulary=vocabulary,
        width=width,
        heads=max(1, width // _HEAD_WIDTH),
        layers=layers,
    )
    embedding = tensors["text_projection"].shape[1]
    with torch.device("meta"):
        wanted = TextTower(config, embedding).state_dict()
    if wrong := [
        n for n in {**wanted, **tensors} if n not in tensors or n not in wanted or tensors[n].shape != wanted[n].shape
    ]:
        raise ValueError(f"{path} holds another text tower than open_clip's: {describe(wrong)} do not fit")
    return config, embedding
