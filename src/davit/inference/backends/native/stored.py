"""The tensors of an engine's file, verified as a whole and then read one by one: never all are in memory at once."""

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from davit.weights.checkpoint import HEADER_LIMIT, CheckpointError

KEY = "davit_native_version"
VERSION = "1"
NO_DIGEST = "0" * 64
_DTYPES = {"F32": torch.float32, "I8": torch.int8, "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16}
_PIECE = 1 << 20  # bytes hashed at once
Described = dict[str, tuple[torch.dtype, torch.Size]]


class StoredTensors:
    """A file whose every bit was verified, and its tensors by name; use it as a context.

    Attributes:
        metadata: of the header.
    """

    def __init__(self, path: Path) -> None:
        """Open and verify.

        Raises:
            CheckpointError: damaged, of a newer version, or not written by `write_native`.
            OSError: it cannot be read.
        """
        self.path = path
        self._file = path.open("rb", buffering=0)
        try:
            self._state = self._now()
            self.metadata = self._verify()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "StoredTensors":
        """Close it in the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self._file.close()

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor.

        Raises:
            CheckpointError: the file was cut since it was verified.
        """
        dtype, shape = self._described[name]
        start, end = self._places[name]
        if end == start:
            return torch.empty(shape, dtype=dtype)
        data = mmap.mmap(-1, end - start)  # memory of its own: the allocator would keep what many large pieces leave
        view = memoryview(data)
        self._file.seek(start)
        while view:
            count = self._file.readinto(view)
            if not count:
                raise CheckpointError(f"{self.path}: was cut while it was read; get the file anew")
            view = view[count:]
        return torch.frombuffer(data, dtype=dtype).view(shape)

    def described(self) -> Described:
        """Type and shape of each tensor."""
        return dict(self._described)

    def check_unchanged(self) -> None:
        """Make sure that what was read is what was verified.

        Raises:
            CheckpointError: somebody wrote to the file meanwhile.
        """
        if self._now() != self._state:
            raise CheckpointError(f"{self.path}: was changed while it was read; open it again")

    def _now(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns

    def _verify(self) -> dict[str, str]:
        damaged = CheckpointError(f"{self.path}: damaged, or not written by `davit export`; export it anew")
        start = self._file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= HEADER_LIMIT:
            raise damaged
        raw = self._file.read(length)
        try:
            parsed = json.loads(raw)
            metadata = parsed.pop("__metadata__")
            stated, version = metadata["davit_native_sha256"], metadata[KEY]
            digest = hashlib.sha256((start + raw).replace(stated.encode(), NO_DIGEST.encode(), 1))
            while piece := self._file.read(_PIECE):
                digest.update(piece)
            if len(stated) != 64 or digest.hexdigest() != stated:
                raise damaged
            if version != VERSION:
                raise CheckpointError(
                    f"{self.path}: written by a newer davit (format {version}, known is {VERSION}); upgrade davit"
                )
            self._described: Described = {
                name: (_DTYPES[entry["dtype"]], torch.Size(entry["shape"])) for name, entry in parsed.items()
            }
            self._places = {
                name: (8 + length + entry["data_offsets"][0], 8 + length + entry["data_offsets"][1])
                for name, entry in parsed.items()
            }
        except CheckpointError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise damaged from error
        return metadata


class NativeTensors(Mapping[str, Tensor]):
    """Those of the engine, without their prefix and in the engine's order, each read when it is asked for."""

    def __init__(self, stored: StoredTensors, names: tuple[str, ...]) -> None:
        """Look up `native.NAME` for each name."""
        self._stored, self._names = stored, names

    def __getitem__(self, name: str) -> Tensor:
        """Read one."""
        return self._stored[f"native.{name}"]

    def __iter__(self) -> Iterator[str]:
        """Names, in order."""
        return iter(self._names)

    def __len__(self) -> int:
        """Count them."""
        return len(self._names)
