"""What our ONNX files say about themselves, and how damage to them is found.

The metadata of the file holds what the header of a checkpoint holds, see `to_metadata`. ONNX has no checksum, so
`davit_sha256` is one over the whole file, with zeros in its own place; where the weights lie in a second file, as those
of models over 2 GB must, `davit_data` has the name and SHA-256 of that.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from davit.weights.checkpoint import CheckpointError

PRODUCER = "davit"
NO_DIGEST = "0" * 64

_DIGEST_KEY = b"davit_sha256\x12\x40"  # in protobuf: the key, then a string of 64 bytes
_START = b"\x12" + bytes([len(PRODUCER)]) + PRODUCER.encode()  # the producer, after two bytes with the version of ONNX


def is_onnx(path: str | Path) -> bool:
    """Whether a file is meant to be ONNX: its name ends in .onnx, or `davit export` wrote it under another name."""
    if Path(path).suffix.lower() == ".onnx":
        return True
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return file.read(2 + len(_START))[2:] == _START


def sealed(raw: bytes) -> bytes:
    """The file with its digest in place of the zeros."""
    assert raw.count(_DIGEST_KEY + NO_DIGEST.encode()) == 1
    place = raw.rindex(_DIGEST_KEY) + len(_DIGEST_KEY)
    return raw[:place] + hashlib.sha256(raw).hexdigest().encode() + raw[place + len(NO_DIGEST) :]


def check_file(path: Path) -> None:
    """Verify a file to the bit, before anything else reads it.

    Raises:
        CheckpointError: damaged, or not written by `davit export`.
        OSError: it cannot be read.
    """
    raw = bytearray(path.read_bytes())
    place = raw.rfind(_DIGEST_KEY)
    if place < 0:
        raise CheckpointError(
            f"{path}: damaged, or not written by `davit export`: it does not say how images are prepared for it and "
            "what its outputs mean"
        )
    digest = slice(place + len(_DIGEST_KEY), place + len(_DIGEST_KEY) + len(NO_DIGEST))
    stated = bytes(raw[digest])
    raw[digest] = NO_DIGEST.encode()
    if hashlib.sha256(raw).hexdigest().encode() != stated:
        raise CheckpointError(f"{path}: damaged, or changed since `davit export` wrote it; export it anew")


def check_data(path: Path, metadata: Mapping[str, str]) -> None:
    """Verify the file with the weights, where there is one.

    Raises:
        CheckpointError: damaged, or of another export.
    """
    if "davit_data" not in metadata:
        return
    stated = json.loads(metadata["davit_data"])
    data = path.parent / stated["file"]
    with data.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != stated["sha256"]:
            raise CheckpointError(f"{data}: damaged, or not the weights of {path}; export both anew")
