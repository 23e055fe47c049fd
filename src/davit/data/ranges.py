"""Pieces of files, on this machine or over HTTP. Both kinds travel to other processes, which then share nothing."""

import http.client
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urljoin, urlsplit

OPEN_FILES = 256
TIMEOUT = 10.0  # seconds without a byte
DEADLINE = 30.0  # seconds for one answer, however steadily its bytes drip
RETRY_FOR = 30.0  # seconds after which a failure is final: with the line above, no read takes longer than a minute
PAUSES = (0.0, 0.5, 1.0, 2.0)  # before each retry; a kept connection that was closed meanwhile deserves one at once
REDIRECTS = 5
_AGAIN = frozenset((408, 429, 500, 502, 503, 504))
_MOVED = frozenset((301, 302, 303, 307, 308))


class ShardError(OSError):
    """A shard or its index that cannot be read, or is not what the index says; the message names it.

    It is no `ImageError`: training replaces a bad image, but an unreachable disk must not become other images.
    """


class Store(Protocol):
    """Files under one root."""

    def where(self, file: str) -> str:
        """Path or URL of a file, for messages."""
        ...

    def whole(self, file: str) -> bytes:
        """Content of a file.

        Raises:
            ShardError: it cannot be read.
        """
        ...

    def piece(self, file: str, offset: int, size: int, total: int) -> bytes:
        """Some bytes of a file that has `total`.

        Raises:
            ShardError: they cannot be read, or the file has another size.
        """
        ...


def is_url(root: str | Path) -> bool:
    """Tell URLs from paths."""
    return str(root).startswith(("http://", "https://"))


def open_store(root: str | Path) -> Store:
    """Files in a folder, or under a URL."""
    return Server(str(root)) if is_url(root) else Folder(Path(root))


class Folder:
    """Files in a folder, read by position: no process moves another's place in a file."""

    def __init__(self, root: Path) -> None:
        """Read under `root`."""
        self.root = root
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()

    def __reduce__(self) -> tuple[type["Folder"], tuple[Path]]:
        """Travel without open files."""
        return Folder, (self.root,)

    def where(self, file: str) -> str:
        """Path of a file."""
        return str(self.root / file)

    def whole(self, file: str) -> bytes:
        """Content of a file."""
        try:
            return (self.root / file).read_bytes()
        except OSError as error:
            raise ShardError(f"{self.where(file)}: {error.strerror or error}") from error

    def piece(self, file: str, offset: int, size: int, total: int) -> bytes:
        """Some bytes of a file."""
        try:
            data = os.pread(self._descriptor(file).number, size, offset)
        except OSError as error:
            raise ShardError(f"{self.where(file)}: {error.strerror or error}") from error
        if len(data) != size:
            raise ShardError(f"{self.where(file)} is cut short: it ends before byte {offset + size:,} of {total:,}")
        return data

    def _descriptor(self, file: str) -> "_Descriptor":
        descriptor = self._open.get(file)
        if descriptor is None:
            descriptor = self._open[file] = _Descriptor(self.root / file)
            if len(self._open) > OPEN_FILES:  # another thread may still read from it: it closes when no one holds it
                self._open.popitem(last=False)
        return descriptor


class _Descriptor:
    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class _PassingError(Exception):
    """A failure that may be over at the next try."""


class Server:
    """Files under a URL, by range requests over connections that stay open; one for each process and thread."""

    def __init__(self, root: str) -> None:
        """Read under `root`, an http or https URL."""
        self.root = root.rstrip("/") + "/"
        self._connections: dict[tuple[int, int, str, str], http.client.HTTPConnection] = {}

    def __reduce__(self) -> tuple[type["Server"], tuple[str]]:
        """Travel without connections."""
        return Server, (self.root,)

    def where(self, file: str) -> str:
        """URL of a file."""
        return urljoin(self.root, quote(file))

    def whole(self, file: str) -> bytes:
        """Content of a file."""
        return self._persistent(self.where(file), None)[1]

    def piece(self, file: str, offset: int, size: int, total: int) -> bytes:
        """Some bytes of a file."""
        url = self.where(file)
        content_range, data = self._persistent(url, (offset, size))
        told = content_range.rpartition("/")[2]
        if told.isdigit() and int(told) != total:
            raise ShardError(f"{url} has {int(told):,} bytes, the index says {total:,}: it is not the file indexed")
        return data

    def _persistent(self, url: str, piece: tuple[int, int] | None) -> tuple[str, bytes]:
        """Try again after what may pass, a few times and with pauses."""
        reason, tries = "", 0
        until = time.monotonic() + RETRY_FOR
        while tries == 0 or (tries <= len(PAUSES) and time.monotonic() < until):
            time.sleep(PAUSES[tries - 1] if tries else 0.0)
            tries += 1
            try:
                return self._get(url, piece)
            except _PassingError as error:
                reason = str(error)
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, ShardError):
                    raise
                reason = str(error) or type(error).__name__
        raise ShardError(f"{url}: {reason} (tried {tries} times)")

    def _get(self, url: str, piece: tuple[int, int] | None) -> tuple[str, bytes]:
        """Ask once, following redirects; return the Content-Range header and the body."""
        headers = {} if piece is None else {"Range": f"bytes={piece[0]}-{piece[0] + piece[1] - 1}"}
        at = url
        for _ in range(REDIRECTS):
            key, connection = self._connection(at)
            done = False
            try:
                parts = urlsplit(at)
                query = f"?{parts.query}" if parts.query else ""
                connection.request("GET", (parts.path or "/") + query, headers=headers)
                response = connection.getresponse()
                if response.status in _MOVED:
                    at = urljoin(at, response.headers.get("Location", ""))
                    response.read(1 << 16)
                    done = response.isclosed()  # otherwise the connection holds more of that page
                    continue
                _check_status(url, response.status, partial=piece is not None)
                body = _body(response, None if piece is None else piece[1])
                done = True
                return response.headers.get("Content-Range", ""), body
            finally:
                if not done or response.will_close:
                    connection.close()
                    self._connections.pop(key, None)
        raise ShardError(f"{url}: more than {REDIRECTS} redirects")

    def _connection(self, url: str) -> tuple[tuple[int, int, str, str], http.client.HTTPConnection]:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ShardError(f"{url}: only http and https are followed")
        # by process too: after a fork the parent's are not ours
        key = (os.getpid(), threading.get_ident(), parts.scheme, parts.netloc)
        if key not in self._connections:
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            self._connections[key] = kind(parts.netloc, timeout=TIMEOUT)
        return key, self._connections[key]


def _check_status(url: str, status: int, *, partial: bool) -> None:
    if status in _AGAIN:
        raise _PassingError(f"the server answers {status} ({http.client.responses.get(status, '')})")
    if partial and status == 200:  # its body may be huge: it is not read
        raise ShardError(f"{url}: the server sends whole files only; shards need one that answers range requests")
    if status != (206 if partial else 200):
        raise ShardError(f"{url}: the server answers {status} ({http.client.responses.get(status, 'unknown')})")


def _body(response: http.client.HTTPResponse, size: int | None) -> bytes:
    """Read to the end, and no longer than the deadline."""
    until = time.monotonic() + DEADLINE
    told = response.length if size is None else size  # None: the end of the answer is its only sign
    chunks: list[bytes] = []
    length = 0
    while (told is None or length < told) and (chunk := response.read1(1 << 20)):
        chunks.append(chunk)
        length += len(chunk)
        if time.monotonic() > until:
            raise _PassingError(f"the answer was not complete after {DEADLINE:.0f} seconds")
    if told is not None and length != told:
        raise _PassingError(f"the server sent {length:,} of {told:,} bytes")
    response.close()  # read to its end, it leaves the connection open
    return b"".join(chunks)
