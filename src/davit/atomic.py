"""A file appears whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` only once everything is on the disk.

    Raises:
        OSError: the path and the reason; what was at `path` before is untouched, and no temporary file stays.
    """
    target = Path(os.path.realpath(path))  # a link keeps pointing at the file, which is replaced
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _explained(error, target) from error
        raise


def _explained(error: OSError, target: Path) -> OSError:
    reason = error.strerror or str(error)
    if not target.parent.is_dir():
        reason = f"the folder {target.parent} does not exist"
    explained = OSError(f"could not save {target}: {reason}")
    explained.errno = error.errno
    return explained


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    # Without this a power cut may bring back the old name although the data is safe.
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
