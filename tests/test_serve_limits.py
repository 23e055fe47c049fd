"""What `davit serve` refuses, by which name, and before it works."""

import asyncio
import io
import random
import struct
import zlib
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from davit.serving.errors import STATUS, ProblemError
from davit.serving.limits import ByteBudget, Limits
from davit.serving.pictures import MOST_SCANS, Decoder, PixelBudget, check_header
from odd_pictures import encode, png, scene
from small_servers import ColourBackend, client_of, colour_model, running

RED = encode(np.full((20, 30, 3), (250, 9, 9), np.uint8), "PNG")
LIMITS = Limits(body_bytes=100_000, pixels=1_000_000, images=4, texts=2, queue_images=8, queue_bytes=1_000_000)
RAW = {"content-type": "application/octet-stream"}


def form(*names: str, data: bytes = RED, boundary: bytes = b"XX") -> dict[str, Any]:
    body = b"".join(
        b'--XX\r\nContent-Disposition: form-data; name="%s"; filename="a.png"\r\n\r\n%s\r\n' % (name.encode(), data)
        for name in names
    )
    headers = {"content-type": f"multipart/form-data; boundary={boundary.decode()}"}
    return {"content": body + b"--XX--\r\n", "headers": headers}


def raw(data: bytes, kind: str = "application/octet-stream", **headers: str) -> dict[str, Any]:
    return {"content": data, "headers": {"content-type": kind, **headers}}


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encode(scene(random.Random(1), 64, 64), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


async def endless() -> AsyncGenerator[bytes]:
    for _ in range(1000):
        yield bytes(1000)


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("unknown_model", "?model=nobody", raw(RED)),
    ("bad_parameter", "?top=0", raw(RED)),
    ("bad_parameter", "?top=many", raw(RED)),
    ("bad_parameter", "?threshold=2", raw(RED)),
    ("bad_parameter", "?map=perhaps", raw(RED)),
    ("bad_parameter", "", raw(RED, **{"x-deadline-ms": "soon"})),
    ("bad_parameter", "", raw(RED, **{"x-deadline-ms": "0"})),
    ("body_too_large", "", raw(bytes(100_001))),
    ("body_too_large", "", {"content": endless(), "headers": RAW}),
    ("too_many_images", "", form(*["file"] * 5)),
    ("no_image", "", raw(b"")),
    ("no_image", "", form()),
    ("no_image", "", form("picture")),
    ("bad_multipart", "", form(*["x"] * 300, data=b"")),
    ("no_image", "", form("file", data=b"")),
    ("bad_multipart", "", {"content": b"", "headers": {"content-type": "multipart/form-data"}}),
    ("bad_multipart", "", form("file", boundary=b"YY")),
    ("bad_multipart", "", {"content": form("file")["content"][:-9], "headers": form()["headers"]}),
    ("unsupported_media_type", "", raw(RED, "text/plain")),
    ("unsupported_media_type", "", raw(RED, "application/json")),
    ("unsupported_media_type", "", {"content": RED}),
    ("unsupported_format", "", raw(encode(scene(random.Random(1)), "GIF"))),
    ("unsupported_format", "", raw(encode(scene(random.Random(1)), "TIFF"))),
    ("unsupported_format", "", raw(encode(scene(random.Random(1)), "BMP"))),
    ("unsupported_format", "", raw(b"http://example.org/cat.jpg")),
    ("unsupported_format", "", raw(b"/etc/passwd")),
    ("image_damaged", "", raw(RED[:60])),
    ("image_damaged", "", raw(RED[:20])),
    ("image_damaged", "", raw(b"\xff\xd8\xff\xe0")),
    ("too_many_pixels", "", raw(png(1001, 1000))),
    ("too_many_pixels", "", raw(png(60_000, 60_000))),
    ("too_many_pixels", "", raw(encode(np.zeros((700, 700, 3), np.uint8), "WEBP"))),
    ("image_too_slow", "", raw(scans(MOST_SCANS + 1))),
]  # fmt: skip


def post(
    path: str, request: dict[str, Any], *, limits: Limits = LIMITS, backend: ColourBackend | None = None
) -> httpx.Response:
    async def work() -> httpx.Response:
        async with running({"m": colour_model(backend)}, limits=limits) as service, client_of(service) as client:
            answer = await client.post(path, **request)
            assert service.budget.held == 0
            assert service.models["m"].batcher.pending == 0
            return answer

    return asyncio.run(work())


@pytest.mark.parametrize(
    ("kind", "query", "request_"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_refused_and_how(kind: str, query: str, request_: dict[str, Any]) -> None:
    backend = ColourBackend()
    answer = post(f"/v1/predict{query}", request_, backend=backend)
    assert (answer.status_code, answer.json()["error"]["type"]) == (STATUS[kind], kind)
    message = answer.json()["error"]["message"]
    assert 20 < len(message) < 500
    assert message.isprintable()
    assert not backend.batches


def test_limits_let_through_what_just_fits() -> None:
    files = encode(np.zeros((1000, 1000), np.uint8), "PNG")
    assert post("/v1/predict", raw(files)).status_code == 200
    assert post("/v1/predict", form(*["file"] * 4)).status_code == 200
    assert post("/v1/predict", raw(encode(np.zeros((612, 612), np.uint8), "WEBP"))).status_code == 200
    assert post("/v1/predict", raw(scans(20))).status_code == 200
    assert post("/v1/predict", raw(RED, "image/png; charset=utf-8")).status_code == 200


def test_pixels_are_counted_before_any_is_decoded() -> None:
    """A hundred kilobytes that are 900 megapixels cost no memory and no time."""
    raws = zlib.compress(bytes(10_000_000))
    bomb = png(30_000, 30_000)[:33] + struct.pack(">I", len(raws)) + b"IDAT" + raws
    with pytest.raises(ProblemError, match="pixels"):
        check_header(bomb, "bomb", Limits())


@pytest.mark.parametrize(
    ("path", "request_", "kind"),
    [
        ("/v1/embed", {"content": b"{", "headers": {"content-type": "application/json"}}, "bad_request"),
        ("/v1/embed", {"json": {"text": "a"}}, "bad_parameter"),
        ("/v1/embed", {"json": {"texts": []}}, "bad_parameter"),
        ("/v1/embed", {"json": {"texts": [" "]}}, "bad_parameter"),
        ("/v1/embed", {"json": {"texts": ["a", "b", "c"]}}, "too_many_texts"),
        ("/v1/embed", {"json": {"texts": ["a"]}}, "bad_parameter"),
        ("/v1/embed", {"content": b"[" * 90_000, "headers": {"content-type": "application/json"}}, "bad_request"),
        ("/v1/explain", raw(RED), "explain_needs_checkpoint"),
        ("/v1/nothing", raw(RED), "not_found"),
        ("/healthz", raw(RED), "method_not_allowed"),
    ],
)
def test_other_routes_refuse_by_name_too(path: str, request_: dict[str, Any], kind: str) -> None:
    backend = ColourBackend(kind="embedding") if path == "/v1/embed" else ColourBackend()
    answer = post(path, request_, backend=backend)
    assert (answer.status_code, answer.json()["error"]["type"]) == (STATUS[kind], kind)


def test_exported_files_give_no_vectors() -> None:
    answer = post("/v1/embed", raw(RED))
    assert (answer.status_code, answer.json()["error"]["type"]) == (409, "embed_needs_checkpoint")


def test_a_bad_picture_among_several_has_its_error_in_its_place() -> None:
    good, bad = ("file", ("good.png", RED)), ("file", ("ünï\n.png", RED[:60]))
    answer = post("/v1/predict", {"files": [good, bad, good]})
    assert answer.status_code == 200
    first, second, third = answer.json()["results"]
    assert first == third
    assert first["top"][0]["label"] == "red"
    assert second["file"] == "ünï\n.png" or "%0A" in second["file"]  # httpx escapes line breaks
    assert second["error"]["type"] == "image_damaged"
    assert "\n" not in second["error"]["message"]
    answer = post("/v1/predict", {"files": [bad, bad]})
    assert [entry["error"]["type"] for entry in answer.json()["results"]] == ["image_damaged"] * 2


def test_a_decoder_holds_to_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProblemError) as caught:
        Decoder(Limits(decode_seconds=1e-9)).read(RED, "picture")
    assert caught.value.problem.type == "image_too_slow"


def test_a_pixel_budget_lets_one_large_picture_through_and_small_ones_beside() -> None:
    budget = PixelBudget(100)
    with budget(60), budget(40):
        assert budget._used == 100
    with budget(500):
        assert budget._used == 500
    assert budget._used == 0


def test_held_bytes_are_given_back() -> None:
    budget = ByteBudget(100)
    with budget.hold() as one, budget.hold() as two:
        one.add(60)
        two.add(40)
        with pytest.raises(ProblemError) as caught:
            one.add(1)
        assert caught.value.problem.headers() == {"Retry-After": "1"}
    assert budget.held == 0


@pytest.mark.parametrize(
    "fields", [{"deadline": 0}, {"queue_images": 8}, {"queue_bytes": 10}, {"pixels": -1}, {"body_bytes": 0}]
)
def test_limits_that_let_nothing_through_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"over 0|queue"):
        Limits(**fields)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic a-key"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"x-api-key": ""}, 401),
        ({"x-api-key": "ä"}, 401),
        ({"authorization": "Bearer a-key"}, 200),
        ({"authorization": "bearer another"}, 200),
        ({"x-api-key": "a-key"}, 200),
    ],
)
def test_keys_open_all_but_health_and_page(headers: dict[str, str], status: int) -> None:
    async def work() -> None:
        async with running({"m": colour_model()}) as service, client_of(service, ["a-key", "another"]) as client:
            sent = {name: value.encode("latin-1") for name, value in headers.items()}
            for path in ("/v1/models", "/metrics", "/openapi.json"):
                assert (await client.get(path, headers=sent)).status_code == status  # type: ignore[arg-type]
            answer = await client.post("/v1/predict", content=RED, headers={**RAW, **sent})  # type: ignore[dict-item]
            assert answer.status_code == status
            if status == 401:
                assert answer.json()["error"]["type"] == "unauthorised"
                assert answer.headers["www-authenticate"] == "Bearer"
            for path in ("/healthz", "/readyz", "/"):
                assert (await client.get(path)).status_code == 200

    asyncio.run(work())


def test_states_before_and_after_serving() -> None:
    async def work() -> None:
        async with running({"m": colour_model()}) as service, client_of(service) as client:
            service.ready = False
            answers = [
                await client.get("/readyz"),
                await client.get("/v1/models"),
                await client.post("/v1/predict", **raw(RED)),
            ]
            assert [answer.status_code for answer in answers] == [503] * 3
            assert answers[2].json()["error"]["type"] == "loading"
            service.ready, service.stopping = True, True
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/readyz")).status_code == 503
            answer = await client.post("/v1/predict", **raw(RED))
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "shutting_down")
            assert answer.headers["retry-after"] == "5"
            assert answer.headers["connection"] == "close"

    asyncio.run(work())


def test_errors_of_the_server_itself_have_a_type_too(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(ColourBackend):
        @property
        def preprocessing(self) -> Any:
            raise KeyError("secret")

    async def work() -> httpx.Response:
        async with running({"m": colour_model(Wrong())}) as service, client_of(service) as client:
            return await client.get("/v1/models")

    answer = asyncio.run(work())
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "secret" in caplog.text


def test_metrics_count_what_happened() -> None:
    async def work() -> str:
        async with running({"m": colour_model()}) as service, client_of(service) as client:
            await client.post("/v1/predict", **form("file", "file"))
            await client.post("/v1/predict", **raw(b"text"))
            await client.get("/v1/secret-path")
            return (await client.get("/metrics")).text

    text = asyncio.run(work())
    assert 'davit_requests_total{route="/v1/predict",status="200"} 1.0' in text
    assert 'davit_requests_total{route="other",status="404"} 1.0' in text
    assert 'davit_rejections_total{reason="unsupported_format"} 1.0' in text
    assert 'davit_images_computed_total{model="m"} 2.0' in text
    assert "davit_queue_bytes 0.0" in text
    assert "secret-path" not in text


def test_pictures_of_pillow_are_what_the_limits_see() -> None:
    stream = io.BytesIO()
    Image.new("L", (123, 45)).save(stream, "WEBP")
    assert check_header(stream.getvalue(), "x", Limits()) == (123, 45)
