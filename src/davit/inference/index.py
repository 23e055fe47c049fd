"""Vectors of many pictures or texts in one file, and what is nearest among them."""

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from davit.atomic import atomic_write

SUFFIXES = (".npz", ".parquet", ".jsonl")
_ROWS = 65_536  # vectors compared at once, and rows of a group in Parquet
_PARQUET = "Parquet files are read and written by pyarrow: pip install 'davit[parquet]'"


@dataclass(frozen=True, kw_only=True)
class Index:
    """Vectors of length 1, and what they are of.

    Attributes:
        vectors: (N, embedding) float32.
        names: files of the pictures, or the texts.
        kind: "image" or "text".
        model: what `davit embed` was given for a model.
        fingerprint: of the model's file; vectors of one model mean nothing to another.
        size: side of the images, where it was given.
        variant: what the model is, where it was given.
    """

    vectors: NDArray[np.float32]
    names: tuple[str, ...]
    kind: Literal["image", "text"]
    model: str
    fingerprint: str
    size: int | None = None
    variant: str | None = None

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.names) or self.kind not in ("image", "text"):
            raise ValueError(f"vectors {self.vectors.shape} do not fit {len(self.names)} names of kind {self.kind!r}")

    def nearest(self, queries: NDArray[np.float32], top: int) -> list[list[tuple[int, float]]]:
        """The rows most similar to each query, best first, with their cosine; equally similar ones in their order.

        Args:
            queries: (M, embedding), of length 1.
            top: rows wanted for each; all, where there are fewer.

        Raises:
            ValueError: vectors of another length, or `top` below 1.
        """
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"the index holds vectors of {self.vectors.shape[1]} numbers, got {queries.shape}")
        best: list[list[tuple[int, float]]] = [[] for _ in queries]
        for start in range(0, len(self.vectors), _ROWS):
            similar = queries @ self.vectors[start : start + _ROWS].T
            places = np.argsort(-similar, axis=1, kind="stable")[:, :top]
            for row, found in enumerate(places):
                both = best[row] + [(start + int(place), float(similar[row, place])) for place in found]
                best[row] = sorted(both, key=lambda one: -one[1])[:top]
        return best


def check_suffix(path: Path) -> None:
    """Refuse names of no known format, and Parquet without its library, before any work is done.

    Raises:
        ValueError: says what is known, or how to install it.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"an index ends in one of {', '.join(SUFFIXES)}, got {path.name}")
    if path.suffix == ".parquet":
        _parquet()


def write_index(path: Path, index: Index) -> None:
    """Write an index in the format of its name: numpy's .npz, Parquet, or JSON lines; whole or not at all.

    Raises:
        ValueError: an unknown ending, or pyarrow is not installed.
        OSError: the file cannot be written.
    """
    check_suffix(path)
    about = {name: getattr(index, name) for name in ("kind", "model", "fingerprint", "size", "variant")}
    with atomic_write(path) as file:
        if path.suffix == ".npz":
            np.savez(file, vectors=index.vectors, names=np.array(index.names, dtype=str), about=json.dumps(about))
        elif path.suffix == ".parquet":
            pa, parquet = _parquet()
            length = index.vectors.shape[1]
            flat = pa.array(np.ascontiguousarray(index.vectors).reshape(-1))
            columns = {"name": list(index.names), "embedding": pa.FixedSizeListArray.from_arrays(flat, length)}
            table = pa.table(columns).replace_schema_metadata({"davit": json.dumps(about)})
            parquet.write_table(table, file, row_group_size=_ROWS, write_page_checksum=True)
        else:
            for name, vector in zip(index.names, index.vectors, strict=True):
                key = "file" if index.kind == "image" else "text"
                file.write(json.dumps({key: name, "embedding": vector.tolist()}).encode() + b"\n")
    if path.suffix == ".jsonl":
        with atomic_write(_beside(path)) as file:
            file.write(json.dumps(about, indent=1).encode() + b"\n")


def read_index(path: Path) -> Index:
    """Read what `write_index` wrote.

    Raises:
        ValueError: no index, or a damaged one.
        OSError: the file cannot be read.
    """
    check_suffix(path)
    if not path.is_file():
        raise ValueError(f"{path} is not there: make an index with davit embed PATH... --model MODEL --out {path}")
    try:
        if path.suffix == ".npz":
            with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as found:
                return _index(found["vectors"], found["names"].tolist(), json.loads(str(found["about"])))
        if path.suffix == ".parquet":
            return _of_parquet(path.read_bytes())
        with path.open("rb") as file:
            return of_entries(map(json.loads, file), json.loads(_beside(path).read_bytes()))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: {_beside(path).name}, which says what made it, is not beside it") from error
    except (KeyError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path} is no index of davit embed, or damaged ({error}): make it anew") from error


def of_entries(entries: Iterable[Mapping[str, Any]], about: Mapping[str, Any]) -> Index:
    """An index of the lines of a JSON file; lines that tell of errors are passed over."""
    names: list[str] = []
    vectors: list[NDArray[np.float32]] = []
    for entry in entries:
        if "error" not in entry:
            names.append(entry["file"] if "file" in entry else entry["text"])
            vectors.append(np.array(entry["embedding"], np.float32))
    return _index(np.stack(vectors) if vectors else np.empty((0, 0), np.float32), names, about)


def _of_parquet(content: bytes) -> Index:
    _, parquet = _parquet()
    try:
        table = parquet.read_table(BytesIO(content), page_checksum_verification=True)
    except OSError as error:  # what pyarrow raises on damaged bytes
        raise ValueError(str(error).splitlines()[0]) from error
    column = table.column("embedding").combine_chunks()
    vectors = np.asarray(column.flatten(), np.float32).reshape(len(table), column.type.list_size)
    return _index(vectors, table.column("name").to_pylist(), json.loads(table.schema.metadata[b"davit"]))


def _index(vectors: NDArray[Any], names: Sequence[str], about: Mapping[str, Any]) -> Index:
    return Index(
        vectors=np.ascontiguousarray(vectors, np.float32),
        names=tuple(names),
        kind=about["kind"],
        model=about["model"],
        fingerprint=about["fingerprint"],
        size=about["size"],
        variant=about["variant"],
    )


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.made-with.json")


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(_PARQUET) from error
    return pyarrow, pyarrow.parquet
