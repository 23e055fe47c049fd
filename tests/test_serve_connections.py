"""Connections that stall, trickle, flood or speak nonsense, over loopback with short limits."""

import asyncio
import ctypes
import json
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import httpx
import numpy as np
import pytest

from davit.inference.memory import _resident, give_back
from davit.serving.address import open_socket
from davit.serving.limits import Limits
from davit.serving.running import _accept_last
from davit.serving.service import Service
from odd_pictures import encode
from small_servers import colour_model, listening, running

RED = encode(np.full((20, 30, 3), (250, 9, 9), np.uint8), "PNG")
SHORT = Limits(
    header_seconds=0.5, body_seconds=0.5, idle_seconds=0.7, body_bytes=200_000, body_rate=10_000, connections=30
)
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(RED) + RED
PATIENCE = 8.0  # seconds within which this busy machine must have closed what is due after half a second


def serve(talk: Callable[[int, Service], Awaitable[None]], limits: Limits = SHORT) -> None:
    async def work() -> None:
        async with running({"m": colour_model()}, limits=limits) as service, listening(service) as address:
            await asyncio.wait_for(talk(int(address.rpartition(":")[2]), service), 60)

    asyncio.run(work())


async def until_closed(reader: asyncio.StreamReader) -> tuple[bytes, float]:
    begun, got = time.monotonic(), b""
    try:
        while part := await asyncio.wait_for(reader.read(65536), PATIENCE):
            got += part
    except ConnectionError:
        pass
    return got, time.monotonic() - begun


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"", b""),
        (b"GET / HT", b""),
        (HEAD, b""),
        (HEAD + b"Content-Length: 1000\r\n\r\n", b"408"),
        (HEAD + b"Content-Length: 1000\r\n\r\n" + RED[:50], b"408"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n32\r\n" + RED[:50], b"408"),
        (WHOLE, b"200"),
        (WHOLE + HEAD, b"200"),
    ],
    ids=["nothing", "line", "headers", "no body", "half a body", "half a chunk", "idle", "second headers"],
)
def test_stalled_connections_are_closed(sent: bytes, answered: bytes) -> None:
    async def talk(port: int, service: Service) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        got, seconds = await until_closed(reader)
        assert got[9:12] == answered
        assert 0.4 < seconds < PATIENCE
        writer.close()
        assert service.budget.held == 0

    serve(talk)


def test_bytes_that_trickle_are_not_waited_for() -> None:
    async def trickle(port: int, start: bytes) -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(start)
        closed = asyncio.ensure_future(until_closed(reader))
        while not closed.done():
            writer.write(b"x")
            await asyncio.sleep(0.1)
        writer.close()
        return closed.result()[1]

    async def talk(port: int, _: Service) -> None:
        begun = time.monotonic()
        await asyncio.gather(trickle(port, HEAD + b"X-Long: "), trickle(port, HEAD + b"Content-Length: 100000\r\n\r\n"))
        assert time.monotonic() - begun < PATIENCE

    serve(talk)


def test_good_clients_are_served_while_others_stall() -> None:
    async def talk(port: int, _: Service) -> None:
        stalled = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        for _, writer in stalled:
            writer.write(HEAD)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for _ in range(20):
                answer = await client.post("/v1/predict", content=RED, headers={"content-type": "image/png"})
                assert answer.status_code == 200
        for _, writer in stalled:
            writer.close()

    serve(talk)


def test_a_client_that_never_reads_is_given_up() -> None:
    async def talk(port: int, service: Service) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.transport.pause_reading()
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
        begun = time.monotonic()
        closed = False
        while not closed and time.monotonic() - begun < 20:
            await asyncio.sleep(0.05)
            closed = service.metrics.in_flight._value.get() == 0 and writer.transport.is_closing()
            try:
                writer.write(b"x")
            except ConnectionError:
                break
            closed = closed or writer.transport.is_closing()
        assert closed

    serve(talk)


def test_too_large_a_body_is_told_so_even_while_it_is_sent() -> None:
    async def talk(port: int, _: Service) -> None:
        for chunked in (True, False):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            size = 3_000_000
            writer.write(
                HEAD + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: %d\r\n\r\n" % size)
            )
            part = b"%x\r\n%s\r\n" % (1000, bytes(1000)) if chunked else bytes(1000)
            for _ in range(150):
                writer.write(part)
            await writer.drain()
            writer.write(part * 150)
            got, _ = await until_closed(reader)
            assert got.startswith(b"HTTP/1.1 413"), got
            assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["type"] == "body_too_large"
            writer.close()

    serve(talk)


def test_a_refused_body_is_read_and_the_connection_goes_on() -> None:
    async def talk(port: int, _: Service) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = HEAD.replace(b"predict", b"predict?model=nobody") + b"Content-Length: 100000\r\n\r\n"
        for _ in range(3):
            writer.write(head + bytes(60_000))
            await writer.drain()
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404")
            await reader.readuntil(b"}}")
            writer.write(bytes(40_000))
        writer.write(WHOLE)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()

    serve(talk)


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"GET\r\n\r\n", b"\0" * 70_000]
)
def test_what_is_no_http_is_told_so(sent: bytes) -> None:
    async def talk(port: int, _: Service) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        got, _ = await until_closed(reader)
        assert got.startswith(b"HTTP/1.1 400"), got
        assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["type"] == "bad_request"
        writer.close()

    serve(talk)


def test_more_connections_than_may_be_are_told_so() -> None:
    async def talk(port: int, _: Service) -> None:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(30)]
        await asyncio.sleep(0.1)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        got, _ = await until_closed(reader)
        assert got.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in got
        for _, one in [*held, (reader, writer)]:
            one.close()
        await asyncio.sleep(0.2)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()

    serve(talk)


def test_clients_who_come_again_at_once_do_not_keep_a_server_from_ending() -> None:
    over = False

    async def again(port: int) -> None:
        while not over:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                await reader.read()
                writer.close()
            except OSError:
                await asyncio.sleep(0.01)

    async def work() -> float:
        nonlocal over
        async with running({"m": colour_model()}, limits=SHORT) as service:
            async with listening(service) as address:
                clients = [asyncio.ensure_future(again(int(address.rpartition(":")[2]))) for _ in range(150)]
                await asyncio.sleep(0.5)
                service.stopping = True
                begun = time.monotonic()
            spent = time.monotonic() - begun
            over = True
            await asyncio.gather(*clients)
        return spent

    assert asyncio.run(asyncio.wait_for(work(), 30)) < 10


def test_freed_memory_between_pieces_in_use_goes_back_to_the_system() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("another C library")
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    pieces = []
    for _ in range(1000):
        pieces.append((libc.malloc(100_000), libc.malloc(9_000)))
        ctypes.memset(pieces[-1][0], 1, 100_000)
    for large, _ in pieces:
        libc.free(large)
    before = _resident("VmRSS")
    give_back()
    assert before - _resident("VmRSS") > 50_000_000
    for _, small in pieces:
        libc.free(small)


def test_a_server_gives_memory_back_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    times = 0

    def counted() -> None:
        nonlocal times
        times += 1

    monkeypatch.setattr("davit.serving.running.give_back", counted)
    monkeypatch.setattr("davit.serving.running._TICKS", 2)

    async def wait(_port: int, _service: Service) -> None:
        for _ in range(600):
            if times > 3:
                break
            await asyncio.sleep(0.1)

    serve(wait)
    assert times > 3


KEPT = """
import ctypes, sys, threading
from davit.inference.memory import _resident, keep_little

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def piece(size):
    found = libc.malloc(size)
    ctypes.memset(found, 1, size)
    return found

def work():
    before = _resident("VmRSS")
    libc.free(piece(20 << 20))  # from here on glibc by itself keeps twice as much
    for found in [piece(3 << 20) for _ in range(10)]:
        libc.free(found)
    print(_resident("VmRSS") - before)

if sys.argv[1] == "little":
    keep_little()
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def test_little_freed_memory_is_kept_by_each_thread() -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("another C library")

    def kept(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", KEPT, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert kept("usual") > 20 << 20
    assert kept("little") < 8 << 20


def test_the_last_connections_are_taken_all_at_once() -> None:
    """Without a pause in which those who are answered might come again."""
    with open_socket("127.0.0.1", 0) as taken:
        taken.listen(8)
        taken.setblocking(False)
        clients = [socket.create_connection(taken.getsockname()) for _ in range(5)]
        last = _accept_last([taken])
        assert {one.getpeername() for one in last} == {one.getsockname() for one in clients}
        for one in last + clients:
            one.close()
        assert _accept_last([taken]) == []
