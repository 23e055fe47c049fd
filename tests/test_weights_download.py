"""Downloads with the real Hugging Face client against a server of our own that plays the hub."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save

from foreign import randomise, relative_error

NAME = "davit_tiny.msft_in1k"
FILE = f"/timm/{NAME}/resolve/main/model.safetensors"
COMMIT = "0123456789" * 4


class Hub(ThreadingHTTPServer):
    """Serves one file, or says why not."""

    def __init__(self) -> None:
        """Listen on any port, with nothing to serve."""
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = b""
        self.announced = ""
        self.trouble = ""
        self.requests: list[str] = []

    def offer(self, content: bytes, announced: str | None = None) -> None:
        """Serve these bytes under this hash."""
        self.content = content
        self.announced = announced or hashlib.sha256(content).hexdigest()


class Answer(BaseHTTPRequestHandler):
    """The headers that the client looks at."""

    server: Hub

    def do_HEAD(self) -> None:  # noqa: D102
        self.answer(body=False)

    def do_GET(self) -> None:  # noqa: D102
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        """Serve the file, in parts if asked."""
        hub = self.server
        hub.requests.append(f"{self.command} {self.path}")
        if hub.trouble or self.path != FILE:
            self.send_response(404)
            self.send_header("X-Error-Code", hub.trouble or "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, stop = 0, len(hub.content)
        asked = self.headers.get("Range")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), int(last) + 1 if last else stop
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(len(hub.content)))
        self.send_header("X-Linked-ETag", f'"{hub.announced}"')
        self.send_header("ETag", f'"{hub.announced}"')
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(hub.content)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if body:
            self.wfile.write(hub.content[start:stop])

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


DOWNLOAD = f"""
from davit.weights.catalog import WEIGHTS
from davit.weights.download import download
try:
    print("got", download(WEIGHTS["{NAME}"]))
except (ValueError, OSError) as error:
    print(type(error).__name__, error)
"""


def run(script: str, hub: Hub | str, home: Path, *arguments: str, offline: bool = False) -> str:
    """Run a script in a process of its own, for the client reads its settings when imported."""
    port = hub.server_address[1] if isinstance(hub, Hub) else 9
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOAD = f"""
import json, sys, torch, davit
torch.set_num_threads(1)
model = davit.load("{NAME}")
images = torch.load(sys.argv[1])
with torch.no_grad():
    logits = model(images)
torch.save(logits, sys.argv[2])
print(json.dumps([model.preprocessing.crop, len(model.classes), model.classes[1], model.training]))
"""


def test_published_weights_by_name(hub: Hub, tmp_path: Path) -> None:
    theirs = randomise(timm.create_model("davit_tiny"))
    hub.offer(save(theirs.state_dict()))
    images, logits = torch.randn(2, 3, 64, 64), tmp_path / "logits.pt"
    torch.save(images, tmp_path / "images.pt")
    told = run(LOAD, hub, tmp_path / "home", str(tmp_path / "images.pt"), str(logits))
    assert json.loads(told) == [0.95, 1000, "goldfish, Carassius auratus", False]
    with torch.no_grad():
        assert relative_error(torch.load(logits), theirs(images)) < 1e-5


def test_cache_and_its_absence(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    hub.offer(b"weights" * 1000)
    first = run(DOWNLOAD, hub, home)
    assert first.startswith("got ")
    assert Path(first.removeprefix("got ")).read_bytes() == hub.content
    seen = len(hub.requests)
    assert run(DOWNLOAD, hub, home, offline=True) == first
    assert len(hub.requests) == seen
    assert run(DOWNLOAD, "down", home) == first
    offline = run(DOWNLOAD, hub, tmp_path / "empty", offline=True)
    assert "OSError" in offline
    assert "offline mode is on (HF_HUB_OFFLINE) and it is not in the cache" in offline


@pytest.mark.slow  # the client tries again for a while
def test_connection_refused(tmp_path: Path) -> None:
    said = run(DOWNLOAD, "down", tmp_path / "home")
    assert said.startswith(f"OSError could not get {NAME} from https://huggingface.co/timm/{NAME}: the hub cannot be")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("EntryNotFound", "the repository does not hold the file"),
        ("RepoNotFound", "the repository or revision does not exist, or is private"),
        ("RevisionNotFound", "the repository or revision does not exist, or is private"),
    ],
)
def test_not_found(trouble: str, reason: str, hub: Hub, tmp_path: Path) -> None:
    hub.trouble = trouble
    said = run(DOWNLOAD, hub, tmp_path / "home")
    assert said.endswith(reason)
    assert len(said.splitlines()) == 1


def test_damaged_download_is_deleted(hub: Hub, tmp_path: Path) -> None:
    good = b"weights" * 1000
    hub.offer(b"garbage" * 1000, announced=hashlib.sha256(good).hexdigest())
    said = run(DOWNLOAD, hub, tmp_path / "home")
    assert said.startswith(f"CheckpointError {NAME}: the download is damaged (SHA-256 ")
    hub.offer(good)
    assert run(DOWNLOAD, hub, tmp_path / "home").startswith("got ")


NO_SPACE = (
    """
import errno, huggingface_hub
def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")
huggingface_hub.hf_hub_download = full
"""
    + DOWNLOAD
)


def test_no_space_left(tmp_path: Path) -> None:
    said = run(NO_SPACE, "down", tmp_path / "home")
    assert said.endswith("No space left on device while writing to the cache (HF_HOME moves it)")
