"""`davit serve` as a process: it starts, says where, is stopped under load, and says what is wrong with a command."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from davit.cli import main
from davit.cli.serve import _named
from odd_pictures import encode
from small_detectors import TINY
from small_servers import small_classifier

RED = encode(np.full((64, 64, 3), (250, 9, 9), np.uint8), "PNG")
IMAGE = {"content-type": "image/png"}


@contextmanager
def process(*arguments: str, errors: Path) -> Generator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "davit", "serve", "--port", "0", "--json", "--backend", "eager", *arguments]
    with errors.open("w") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server:
        try:
            assert server.stdout is not None
            told = server.stdout.readline()
            assert told, errors.read_text()
            yield server, json.loads(told)["url"]
        finally:
            if server.poll() is None:
                server.kill()


@pytest.mark.slow
def test_stopped_under_load_it_answers_what_it_accepted_and_is_gone_within_ten_seconds(tmp_path: Path) -> None:
    """Before that a file is exchanged by SIGHUP, under the same load."""
    path = small_classifier(tmp_path / "m.safetensors", TINY, names="abcde")
    newer = small_classifier(tmp_path / "newer.safetensors", TINY, seed=1, names="vwxyz")
    seen: Counter[str] = Counter()

    async def load(url: str, stop: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            while not stop.is_set():
                try:
                    answer = await client.post("/v1/predict", content=RED, headers=IMAGE)
                except httpx.ConnectError:
                    seen["refused"] += 1
                    await asyncio.sleep(0.05)
                except httpx.HTTPError as error:
                    seen[f"lost: {error!r}"] += 1
                else:
                    kind = "" if answer.status_code == 200 else f" {answer.json()['error']['type']}"
                    seen[f"{answer.status_code}{kind}"] += 1

    async def work(server: subprocess.Popen[str], url: str) -> float:
        stop = asyncio.Event()
        clients = [asyncio.ensure_future(load(url, stop)) for _ in range(6)]
        await asyncio.sleep(1)
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            shutil.copy(newer, path)
            server.send_signal(signal.SIGHUP)
            for _ in range(200):
                answer = await client.post("/v1/predict", content=RED, headers=IMAGE)
                if answer.json()["results"][0]["top"][0]["label"] in "vwxyz":
                    break
                await asyncio.sleep(0.05)
            else:
                raise AssertionError("no new model")
            assert (await client.get("/readyz")).status_code == 200
            begun = time.monotonic()
            server.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
            assert (await client.get("/readyz")).status_code == 503
        while server.poll() is None and time.monotonic() - begun < 20:
            await asyncio.sleep(0.02)
        spent = time.monotonic() - begun
        stop.set()
        await asyncio.gather(*clients)
        return spent

    with process("--model", str(path), "--watch", "0", errors=tmp_path / "log") as (server, url):
        assert asyncio.run(work(server, url)) < 10
        assert server.wait() == 0
    assert seen.keys() <= {"200", "503 shutting_down", "refused"}, seen
    assert seen["200"] > 10
    assert seen["503 shutting_down"] > 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    asked = [line for line in lines if line.get("path") == "/v1/predict"]
    assert len([line for line in asked if line["status"] == 200]) >= seen["200"]
    assert {"time", "client", "method", "ms"} <= asked[0].keys()


def child_of(process: int) -> int:
    (child,) = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return int(child)


def wait_until(holds: Callable[[], bool], seconds: float) -> float:
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < seconds
        time.sleep(0.05)
    return time.monotonic() - begun


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the server's process by /proc")
def test_killed_it_is_back_within_ten_seconds_and_refuses_no_connection(tmp_path: Path) -> None:
    path = small_classifier(tmp_path / "m.safetensors", TINY, names="abcde")
    log = tmp_path / "log"
    with process("--restart", "--model", str(path), errors=log) as (server, url):
        children = []
        for _ in range(3):
            children.append(child_of(server.pid))
            os.kill(children[-1], signal.SIGKILL)
            with httpx.Client(base_url=url, timeout=30) as client:  # waits for the next server, not refused
                back = wait_until(lambda client=client: client.get("/readyz").status_code == 200, 30)
                assert client.post("/v1/predict", content=RED, headers=IMAGE).status_code == 200
            assert back < 10
        children.append(child_of(server.pid))
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert len(set(children)) == 4
        assert not any(Path(f"/proc/{child}").exists() for child in children)
    told = [json.loads(line)["message"] for line in log.read_text().splitlines() if "anew" in line]
    assert len(told) == 3
    assert all(f"process {child}, was ended by SIGKILL" in line for child, line in zip(children, told, strict=False))


KEPT = """
import os, signal, sys, time
from davit.serving import restarting
restarting.LONGEST_PAUSE = 0.01
life = restarting.keep_alive(lambda line: print(line, flush=True))
if isinstance(life, int):
    sys.exit(life)
print(os.getpid(), flush=True)
"""


@pytest.mark.parametrize(
    ("life", "code", "lives"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", 1, 5),
        ("sys.exit(1)", 1, 5),
        ("sys.exit(2)", 2, 1),
        ("sys.exit(0)", 0, 1),
    ],
)
def test_a_server_that_does_not_live_is_given_up(life: str, code: int, lives: int) -> None:
    done = subprocess.run([sys.executable, "-c", KEPT + life], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert sum(line.isdigit() for line in done.stdout.splitlines()) == lives
    assert done.stdout.count("started anew") == lives - 1
    assert ("not started again" in done.stdout) == (lives == 5)


def test_a_server_that_was_ready_is_started_again_however_soon_it_is_killed(tmp_path: Path) -> None:
    lives = tmp_path / "lives"
    life = f"""
life.ready()
with open({str(lives)!r}, "a") as file:
    file.write("x")
if os.path.getsize({str(lives)!r}) < 8:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", KEPT + life], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.count("started anew") == 7


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_asked_to_stop_between_two_lives_it_ends_as_a_server_would(number: signal.Signals, code: int) -> None:
    paused = KEPT.replace("0.01", "60") + "sys.exit(1)"
    with subprocess.Popen([sys.executable, "-c", paused], stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        ends = (line for line in keeper.stdout if "anew" in line)
        for _ in range(3):  # the pause after the third is two seconds
            next(ends)
        keeper.send_signal(number)
        assert keeper.wait(10) == code


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells a child of its parent's end")
def test_a_server_whose_keeper_is_killed_is_asked_to_stop() -> None:
    life = "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\nprint('lives', flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", KEPT + life], stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        child = int(keeper.stdout.readline())
        assert keeper.stdout.readline() == "lives\n"
        keeper.kill()
        wait_until(lambda: "State:\tR" not in state(child) and "State:\tS" not in state(child), 10)


def state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_port_that_is_taken_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small_classifier(tmp_path / "m.safetensors", TINY)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--model", str(path), "--port", port]) == 2
    error = capsys.readouterr().err
    assert re.search(rf"cannot listen on 127\.0\.0\.1 port {port} .*--port", error)
    assert "Traceback" not in error


def test_a_model_that_cannot_be_had_ends_it_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = small_classifier(tmp_path / "m.safetensors", TINY)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    for model, told in ((str(damaged), "truncated"), ("davit_tinny", "davit_tiny"), ("/no/such", "no file")):
        assert main(["serve", "--model", model, "--port", "0", "--backend", "eager"]) == 2
        captured = capsys.readouterr()
        assert told in captured.err
        assert "Traceback" not in captured.err
        assert not captured.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "a=x", "--model", "a=y"], "two models are called a"),
        (["--model", "a=x", "--default", "b"], "'b'"),
        (["--model", "="], "NAME=MODEL"),
        (["--model", "x", "--templates", "a {}"], "--labels"),
        (["--model", "x", "--batch-size", "0"], "--batch-size"),
        (["--model", "x", "--queue", "3"], "queue"),
        (["--model", "x", "--deadline", "0"], "deadline"),
        (["--model", "x", "--api-keys", os.devnull], "keys"),
        (["--model", "x", "--api-keys", "/no/such/file"], "/no/such/file"),
        (["--model", "x", "--host", "192.0.2.1"], "192.0.2.1"),
        (["--model", "x", "--port", "70000"], "70000"),
    ],
)
def test_wrong_usage_is_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_models_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("plain.safetensors", "a=b.onnx"):
        Path(name).touch()
    given = ["plain.safetensors", "cars=plain.safetensors", "a=b.onnx", "davit_tiny.msft_in1k", "x=./odd=name"]
    assert _named(given) == [
        ("plain", "plain.safetensors"),
        ("cars", "plain.safetensors"),
        ("a=b", "a=b.onnx"),
        ("davit_tiny.msft_in1k", "davit_tiny.msft_in1k"),
        ("x", "./odd=name"),
    ]
