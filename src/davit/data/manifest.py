"""SHA-256 of every file of a folder, in the format of `sha256sum`, and what has changed since."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from davit.data.findings import Finding
from davit.decoding import show_path

Progress = Callable[[int], object]  # is told how many files were read


def files_under(root: Path) -> list[str]:
    """Paths of all files under a folder, hidden ones too, sorted, with slashes."""
    found = [Path(parent, name) for parent, _, names in os.walk(root) for name in names]
    return sorted(path.relative_to(root).as_posix() for path in found if path.is_file())


def manifest_lines(root: Path, progress: Progress = lambda _: None) -> Iterator[bytes]:
    """Yield a line for each file; `sha256sum --check` in the folder reads them as well.

    Raises:
        OSError: a file cannot be read.
    """
    for name in files_under(root):
        digest = _digest(root / name)
        plain = name.encode("utf-8", "surrogateescape")
        escaped = plain.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
        yield (b"\\" if escaped != plain else b"") + digest.encode() + b"  " + escaped + b"\n"
        progress(1)


def compare_manifest(root: Path, manifest: Path, progress: Progress = lambda _: None) -> list[Finding]:
    """Find files that changed, vanished or came since a manifest was written.

    Raises:
        ValueError: a line that belongs to no manifest.
        OSError: the manifest cannot be read.
    """
    expected = _parsed(manifest)
    findings = []
    for name, digest in expected.items():
        path = root / name
        try:
            if _digest(path) != digest:
                findings.append(
                    _finding("error", "changed", path, "is not what the manifest says: its SHA-256 differs")
                )
        except OSError as error:
            findings.append(_finding("error", "missing", path, f"is in the manifest: {error.strerror}"))
        progress(1)
    own = manifest.resolve()
    for name in files_under(root):
        if name not in expected and (root / name).resolve() != own:
            findings.append(_finding("warning", "not-in-manifest", root / name, "is not in the manifest"))
    return findings


def _parsed(manifest: Path) -> dict[str, str]:
    expected: dict[str, str] = {}
    for number, line in enumerate(manifest.read_bytes().splitlines(), 1):
        escaped = line.startswith(b"\\")
        digest, separator, name = line.removeprefix(b"\\").partition(b"  ")
        if not separator or len(digest) != 64 or not name:
            raise ValueError(f"{manifest}, line {number}: not a SHA-256 and a file name; make it with --write-manifest")
        if escaped:
            name = name.replace(b"\\\\", b"\0").replace(b"\\n", b"\n").replace(b"\\r", b"\r").replace(b"\0", b"\\")
        expected[name.decode("utf-8", "surrogateescape")] = digest.decode("ascii", "replace").lower()
    return expected


def _finding(level: str, kind: str, path: Path, message: str) -> Finding:
    return Finding(level=level, kind=kind, file=show_path(path), message=message)  # type: ignore[arg-type]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
