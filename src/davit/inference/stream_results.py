"""Answers as JSON lines in a file that outlives whatever ends the process, and is gone on with."""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from davit.atomic import atomic_write
from davit.records import differences

EVERY = 1.0  # seconds between writes to the disk


class ResultFile:
    """A line for each picture, in the order of the pictures.

    A line is with the system as soon as it is added, so that it outlives this process; `sync` brings it to the disk, so
    that it outlives the machine's power. Beside the file lies `NAME.made-with.json`, by which another model or other
    options are noticed. While it is open, no other process can write to it.

    Attributes:
        path: where it is.
        answered: pictures that have a line.
        broken: lines that tell of an error.
        safe: lines that are on the disk.
    """

    def __init__(self, path: str | Path, made_with: Mapping[str, Any], names: Iterable[str]) -> None:
        """Open a file to go on with, or begin it; a last line that was cut short is taken away.

        Args:
            path: where; its folder must be there.
            made_with: JSON values that the answers depend on.
            names: of the pictures, as the lines have them under "file"; taken one by one, for each line there is.

        Raises:
            ValueError: the file is of another model, of other options, of other pictures, or not of this kind; or it is
                in use.
            OSError: it cannot be read or written.
        """
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            _lock(self._file.fileno(), self.path)
            self._check(made_with)
            self.answered = self.broken = 0
            end = self._count_lines(iter(names))
            self._file.truncate(end)
            self._file.seek(end)
        except BaseException:
            self._file.close()
            raise
        self.safe = self.answered
        self._synced = time.monotonic()

    def entries(self) -> Iterator[dict[str, Any]]:
        """Read all lines."""
        with self.path.open("rb") as file:
            for line in file:
                yield json.loads(line)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append an answer.

        Raises:
            OSError: no space; the line is taken away again.
        """
        start = self._file.tell()
        left = memoryview(json.dumps(entry).encode() + b"\n")
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(start)
            raise _explained(error, self.path) from error
        self.answered += 1
        self.broken += "error" in entry
        if time.monotonic() - self._synced >= EVERY:
            self.sync()

    def sync(self) -> None:
        """Bring all lines to the disk.

        Raises:
            OSError: that failed.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _explained(error, self.path) from error
        self.safe, self._synced = self.answered, time.monotonic()

    def close(self) -> None:
        """Bring all lines to the disk, and let others have the file.

        Raises:
            OSError: that failed.
        """
        try:
            self.sync()
        finally:
            self._file.close()

    def __enter__(self) -> "ResultFile":
        """Close it in the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; what went wrong before is told rather than that the disk failed in the end, too."""
        with suppress(*([] if error is None else [OSError])):
            self.close()

    def _check(self, made_with: Mapping[str, Any]) -> None:
        """Compare what made the file with what would go on with it; with an empty file, say it anew."""
        beside = self.path.with_name(f"{self.path.name}.made-with.json")
        if not self._file.seek(0, os.SEEK_END):
            with atomic_write(beside) as file:
                file.write(json.dumps(made_with, indent=1).encode() + b"\n")
            return
        try:
            before = json.loads(beside.read_bytes())
        except (FileNotFoundError, ValueError):
            raise ValueError(
                f"{self.path} holds something already and {beside.name}, which says what made it, is not beside it or "
                "damaged; name another file"
            ) from None
        if found := differences(before, made_with):
            raise ValueError(
                f"{self.path} was made with {'; '.join(found)}. Name another file, repeat the command that made it, or "
                "delete it to begin anew"
            )

    def _count_lines(self, names: Iterator[str]) -> int:
        """Count lines and errors, and return where the last whole line ends."""
        self._file.seek(0)
        end = 0
        with open(self._file.fileno(), "rb", closefd=False) as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                entry = self._parsed(line)
                self.answered += 1
                self.broken += "error" in entry
                end += len(line)
                if entry["file"] != (name := next(names, None)):
                    now = "there are no more pictures" if name is None else f"picture {self.answered} is {name!r} now"
                    raise ValueError(
                        f"{self.path}: line {self.answered} answers {entry['file']!r}, but {now}: the pictures changed "
                        "since it was begun. Name another file, or delete it to begin anew"
                    )
        return end

    def _parsed(self, line: bytes) -> dict[str, Any]:
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and "file" in entry:
                return entry
        raise ValueError(
            f"{self.path}: line {self.answered + 1} is damaged; cut the file there, or delete it to begin anew"
        )


def fingerprint(path: Path) -> str:
    """SHA-256 over a model's file, and over the file of weights beside it where a format keeps them apart."""
    digest = hashlib.sha256()
    apart = (path.with_suffix(".bin"),) if path.suffix == ".xml" else (path.with_name(f"{path.name}.data"),)
    for file in (path, *apart):
        with suppress(FileNotFoundError), file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _open(path: Path) -> FileIO:
    try:
        return FileIO(path, "a+")  # without a buffer, which would hold lines back
    except OSError as error:
        raise _explained(error, path) from error


def _lock(descriptor: int, path: Path) -> None:
    if os.name == "nt":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{path} is being written by another process; name another file, or wait for it") from None
    except OSError:  # a file system without locks
        return


def _explained(error: OSError, path: Path) -> OSError:
    explained = OSError(f"could not write {path}: {error.strerror or error}")
    explained.errno = error.errno
    return explained
