"""Our checkpoint: one safetensors file whose header says what it holds and proves that nothing changed.

Layout: 8 bytes (length of the header), a JSON header, the tensors. safetensors has no checksum, so the header carries a
SHA-256 per tensor, and one over its own bytes with the place of that digest filled with zeros. Any reader of
safetensors can read the file.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from davit.atomic import atomic_write
from davit.models.clip_config import ImageTextConfig
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.detector_config import DetectorConfig
from davit.models.segmenter_config import SegmenterConfig
from davit.preprocessing import Preprocessing
from davit.records import from_json, to_json

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["classifier", "backbone", "dense", "detector", "segmenter", "image_text"]
ModelConfig = ClassifierConfig | DetectorConfig | SegmenterConfig | ImageTextConfig | DaViTConfig

CONFIGS: dict[str, type[ModelConfig]] = {
    "classifier": ClassifierConfig,
    "backbone": DaViTConfig,
    "dense": DaViTConfig,
    "detector": DetectorConfig,
    "segmenter": SegmenterConfig,
    "image_text": ImageTextConfig,
}

VERSION = "1"
HEADER_LIMIT = 100_000_000  # bytes; the limit of safetensors itself

_NO_DIGEST = "0" * 64


class CheckpointError(ValueError):
    """A file that is damaged, or is not what it should be."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a checkpoint says about its tensors.

    Attributes:
        kind: which of our modules the tensors belong to.
        config: its architecture.
        preprocessing: what images go through before it, where known.
        classes: a name per class, or none.
        provenance: where the weights come from; any JSON values.
    """

    kind: Kind
    config: ModelConfig
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a header that contradicts itself."""
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if type(self.config) is not CONFIGS[self.kind]:
            raise ValueError(f"a {self.kind} cannot have a {type(self.config).__name__}")
        count = 0 if isinstance(self.config, DaViTConfig | ImageTextConfig) else self.config.num_classes
        if self.classes and len(self.classes) != count:
            raise ValueError(f"{len(self.classes)} class names for {count} classes: give each its name, or none")
        if len(set(self.classes)) < len(self.classes):
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise ValueError(f"class names must differ, got {', '.join(twice[:5])} more than once")

    @property
    def backbone(self) -> DaViTConfig:
        """The architecture under the head, if there is one."""
        return self.config if isinstance(self.config, DaViTConfig) else self.config.backbone


def write_checkpoint(path: str | Path, header: Header, tensors: Mapping[str, "Tensor"]) -> None:
    """Write a checkpoint, atomically.

    Raises:
        ValueError: the name does not end in .safetensors, or a tensor has no data.
        OSError: the disk is full or refuses; whatever was at `path` stays.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"a checkpoint's name ends in .safetensors, got {path}")
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # keeps the data aligned
    digests: dict[str, str] = {}
    entries: dict[str, Any] = {}
    offset = 0
    for name, tensor in ordered:
        data = tensor_bytes(name, tensor)
        digests[name] = tensor_digest(name, tensor)
        dtype, shape = dtype_name(tensor), list(tensor.shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    raw = _header_bytes(_metadata(header, digests), entries)
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(raw)))
        file.write(raw)
        for name, tensor in ordered:
            file.write(tensor_bytes(name, tensor))


def read_header(path: str | Path) -> Header:
    """Read and verify what a checkpoint says about itself, without its tensors.

    Raises:
        CheckpointError: the header is damaged, of a newer version, or the file is none of ours.
    """
    return _parse(path, _metadata_of(path))


def read_checkpoint(path: str | Path) -> tuple[Header, dict[str, "Tensor"]]:
    """Read a checkpoint and verify every bit of it.

    Raises:
        CheckpointError: names the file, and the tensor that is damaged or that it is the header.
    """
    from safetensors import SafetensorError, safe_open

    metadata = _metadata_of(path)
    header = _parse(path, metadata)
    digests = json.loads(metadata["sha256"])
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            if sorted(file.keys()) != sorted(digests):
                raise CheckpointError(f"{path}: the header does not list the tensors that the file holds")
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                tensors[name] = file.get_tensor(name).clone()  # a copy, for the file may change under its map
    except SafetensorError as error:
        raise CheckpointError(f"{path}: truncated or damaged ({error})") from error
    for name, tensor in tensors.items():
        if tensor_digest(name, tensor) != digests[name]:
            raise CheckpointError(f"{path}: tensor {name} is damaged; get the file anew")
    return header, tensors


def is_checkpoint(path: str | Path) -> bool:
    """Whether a file is a checkpoint of ours, going by its header (which may be damaged)."""
    with Path(path).open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        raw = file.read(max(length, 4096) if length <= HEADER_LIMIT else 4096)
    return b'"davit_version"' in raw or b'"davit_header_sha256"' in raw  # one flipped bit spoils one of them at most


def dtype_name(tensor: "Tensor") -> str:
    """The name safetensors gives to a type; the only integers are the counters of batch norms."""
    names = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in names:
        raise ValueError(f"weights are floating point numbers, got {name}")
    return names[name]


def tensor_bytes(name: str, tensor: "Tensor") -> memoryview:
    """The data of a tensor, in order."""
    import torch

    if tensor.is_meta:
        raise ValueError(f"tensor {name} has no data (it is on the meta device)")
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def tensor_digest(name: str, tensor: "Tensor") -> str:
    """SHA-256 over name, type, shape and data."""
    described = json.dumps([name, dtype_name(tensor), list(tensor.shape)]).encode()
    digest = hashlib.sha256(described)
    digest.update(tensor_bytes(name, tensor))
    return digest.hexdigest()


def _metadata(header: Header, digests: dict[str, str]) -> dict[str, str]:
    values = {
        "kind": header.kind,
        "config": json.dumps(to_json(header.config)),
        "preprocessing": json.dumps(to_json(header.preprocessing) if header.preprocessing else None),
        "classes": json.dumps(list(header.classes), ensure_ascii=False),
        "provenance": json.dumps(header.provenance, ensure_ascii=False, sort_keys=True),
        "sha256": json.dumps(digests),
    }
    return {"format": "pt", "davit_version": VERSION, "davit_header_sha256": _NO_DIGEST, **values}


def _header_bytes(metadata: dict[str, str], entries: dict[str, Any]) -> bytes:
    text = json.dumps({"__metadata__": metadata, **entries}, ensure_ascii=False, separators=(",", ":"))
    raw = text.encode()
    raw += b" " * (-len(raw) % 8)
    return raw.replace(_NO_DIGEST.encode(), hashlib.sha256(raw).hexdigest().encode(), 1)


def _metadata_of(path: str | Path) -> dict[str, str]:
    """The metadata of a file of ours, its header verified to the bit."""
    damaged = CheckpointError(f"{path}: the header is damaged, or this is no davit checkpoint; get the file anew")
    with Path(path).open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= HEADER_LIMIT:
            raise damaged
        raw = file.read(length)
    if len(raw) < length:
        raise CheckpointError(f"{path}: truncated inside its header; get the file anew")
    try:
        parsed = json.loads(raw)
        metadata = parsed["__metadata__"]
        stated = metadata["davit_header_sha256"]
        version = metadata["davit_version"]
        blank = raw.replace(stated.encode(), _NO_DIGEST.encode(), 1)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged from error
    if not _covers(path, 8 + length, parsed):
        raise CheckpointError(f"{path}: truncated, or longer than its header says; get the file anew")
    if len(stated) != 64 or hashlib.sha256(blank).hexdigest() != stated:
        raise damaged
    if version != VERSION:
        raise CheckpointError(f"{path}: written by a newer davit (format {version}, known is {VERSION}); upgrade davit")
    return metadata


def _covers(path: str | Path, data_start: int, parsed: Mapping[str, Any]) -> bool:
    ends = (entry["data_offsets"][1] for name, entry in parsed.items() if name != "__metadata__")
    try:
        return Path(path).stat().st_size == data_start + max(ends, default=0)
    except (KeyError, TypeError, IndexError):
        return False


def _parse(path: str | Path, metadata: Mapping[str, str]) -> Header:
    try:
        kind = metadata["kind"]
        preprocessing = json.loads(metadata["preprocessing"])
        return Header(
            kind=kind,  # type: ignore[bad-argument-type]  # __post_init__ refuses other words
            config=from_json(CONFIGS.get(kind, DaViTConfig), json.loads(metadata["config"])),  # type: ignore[no-matching-overload]
            preprocessing=from_json(Preprocessing, preprocessing) if preprocessing else None,
            classes=tuple(json.loads(metadata["classes"])),
            provenance=json.loads(metadata["provenance"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: the header makes no sense: {error}") from error
