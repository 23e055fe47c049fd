"""Tar shards over HTTP: the same samples, and servers that are busy, silent or wrong."""

import pickle
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from davit.data import ranges
from davit.data.folder import ClassFolder
from davit.data.images import find_images
from davit.data.loader import StepSampler, TrainSamples, train_loader
from davit.data.ranges import ShardError
from davit.data.shard_index import INDEX
from davit.data.shards import Shards
from davit.data.transforms import Augmentation, TrainTransform
from davit.preprocessing import Preprocessing
from shard_samples import assert_same, shards_of


class Files(BaseHTTPRequestHandler):
    """Serves a folder with range requests, and misbehaves as its server is told."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are sent apart

    def do_GET(self) -> None:
        """Answer."""
        server = self.server
        server.connections.add(self.client_address)
        server.requests += 1
        if server.failing > 0:
            server.failing -= 1
            self._answer(503, b"busy")
        elif self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send_file(server.root / unquote(self.path).lstrip("/"))

    def _send_file(self, path: Path) -> None:
        if not path.is_file():
            self._answer(404, b"no")
            return
        data = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not wanted or self.server.whole_only:
            self._answer(200, data)
            return
        first, last = int(wanted[1]), int(wanted[2])
        piece = data[first : last + 1]
        if self.server.cutting:
            self.send_response(206)
            self.send_header("Content-Length", str(len(piece)))
            self.end_headers()
            self.wfile.write(piece[:10])
            self.close_connection = True
            return
        self._answer(206, piece, f"bytes {first}-{last}/{len(data)}")

    def _answer(self, status: int, body: bytes, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setattr(ranges, "PAUSES", (0.0, 0.01, 0.01))
    monkeypatch.setattr(ranges, "TIMEOUT", 5.0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.daemon_threads = True
    server.root, server.failing, server.whole_only, server.cutting = shards, 0, False, False
    server.requests, server.connections = 0, set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def url(server: ThreadingHTTPServer, path: str = "") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def test_over_http_the_same_samples_over_one_connection(
    folder: Path, shards: Path, server: ThreadingHTTPServer
) -> None:
    images = Shards(url(server), "train")
    assert_same(images, ClassFolder(folder / "train"))
    assert len(server.connections) == 1
    assert find_images(url(server)).parts == ("train", "val")
    assert_same(pickle.loads(pickle.dumps(images)), ClassFolder(folder / "train"))
    moved = Shards(url(server, "/moved"), "train")
    assert moved.encoded(3) == images.encoded(3)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_no_connection(folder: Path, server: ThreadingHTTPServer, workers: int) -> None:
    images = Shards(url(server), "train")
    transform = TrainTransform(Augmentation(), Preprocessing.imagenet(16))
    sampler = StepSampler(len(images), 5, 0, range(6))
    loaded = [batch.images for batch in train_loader(TrainSamples(images, transform, 0), sampler, workers)]
    local = TrainSamples(ClassFolder(folder / "train"), transform, 0)
    expected = [batch.images for batch in train_loader(local, sampler, 0)]
    assert all(torch.equal(a, b) for a, b in zip(loaded, expected, strict=True))


def test_a_busy_server_is_asked_again_and_a_failing_one_named(server: ThreadingHTTPServer) -> None:
    images = Shards(url(server), "train")
    server.failing = 2
    assert images.encoded(0)
    server.failing = 100
    with pytest.raises(ShardError, match=rf"{url(server)}/train/0000\d\.tar: .*503.*tried 4 times"):
        images.encoded(0)
    server.failing = 0
    server.cutting = True
    with pytest.raises(ShardError, match=r"train/0000\d\.tar"):
        images.encoded(0)
    server.cutting, server.whole_only = False, True
    with pytest.raises(ShardError, match="range requests"):
        images.encoded(0)


def test_a_missing_or_replaced_shard_on_a_server(shards: Path, server: ThreadingHTTPServer) -> None:
    images = Shards(url(server), "val")
    tar = shards_of(images)[0]
    path = shards / "val" / tar
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(ShardError, match=f"{tar} has .* not the file indexed"):
        images.encoded(0)
    path.unlink()
    with pytest.raises(ShardError, match=f"{tar}: the server answers 404"):
        images.encoded(0)
    (shards / INDEX).unlink()
    with pytest.raises(ShardError, match=r"index\.json: the server answers 404"):
        find_images(url(server))


def test_a_silent_server_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(ranges, "TIMEOUT", 0.1)
    monkeypatch.setattr(ranges, "PAUSES", (0.0,))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ShardError, match=r"index\.json: timed out"):
            find_images(f"http://127.0.0.1:{silent.getsockname()[1]}")
