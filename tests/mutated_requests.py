"""Requests that are nearly right: pictures, forms, queries and headers, each changed a little by a seed."""

import random
from dataclasses import dataclass
from functools import cache

from odd_pictures import FAMILIES, encode, scene

QUERIES = ("model", "top", "threshold", "map", "class", "x", "")
VALUES = (
    "m", "", "0", "1", "5", "-1", "1e9", "0.5", "nan", "inf", "true", "99999999999999999999", "%00", "%ff", "../../etc",
    "%F0%9F%90%88", "a" * 300, "http://x/y.jpg", "'--", "{}", "\u00e9",
)  # fmt: skip
TYPES = (
    b"image/jpeg", b"image/png", b"image/", b"application/octet-stream", b"application/json", b"text/plain", b"", b";",
    b"multipart/form-data", b"multipart/form-data; boundary=", b"multipart/form-data; boundary=\xff\xfe",
    b"multipart/form-data; boundary=" + b"b" * 300, b"image/png; charset=x; =", b'multipart/form-data; boundary="',
)  # fmt: skip
PATHS = (
    "/v1/predict",
    "/v1/predict",
    "/v1/predict",
    "/v1/embed",
    "/v1/explain",
    "/v1/models",
    "/",
    "/v1/",
    "//",
    "/%2e",
)
METHODS = ("POST", "POST", "POST", "POST", "POST", "POST", "GET", "PUT", "HEAD", "OPTIONS", "PATCH", "X")
HEADERS = (
    b"accept", b"authorization", b"x-api-key", b"x-deadline-ms", b"content-encoding", b"range", b"cookie",
    b"if-none-match", b"origin", b"upgrade", b"expect", b"x-forwarded-for",
)  # fmt: skip
CONTENTS = (
    b"",
    b"x",
    b"gzip",
    b"Bearer",
    b"Bearer \xff",
    b"bytes=0-",
    b"-1",
    b"100000",
    b"9" * 400,
    b"100-continue",
    b"a=b",
)


@dataclass(frozen=True)
class Request:
    """What a client sends."""

    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def raw(self) -> bytes:
        """As HTTP/1.1, with the length of the body."""
        lines = [f"{self.method} {self.target} HTTP/1.1".encode(), b"host: x"]
        lines += [name + b": " + value for name, value in self.headers]
        return b"\r\n".join([*lines, b"content-length: %d" % len(self.body), b"", self.body])


@cache
def originals() -> tuple[bytes, ...]:
    rng = random.Random(0)
    good = [encode(scene(rng), form) for form in ("JPEG", "PNG", "WEBP") for _ in range(4)]
    good += [encode(scene(rng), "JPEG", progressive=True), encode(scene(rng)[..., 0], "PNG"), encode(scene(rng), "GIF")]
    odd = [FAMILIES[name](rng)[0] for name in FAMILIES if name not in ("long_side", "bomb") for _ in range(3)]
    return tuple(data for data in good + odd if len(data) < 20_000)


def changed(rng: random.Random, data: bytes) -> bytes:
    """Some bytes differ, are gone, are new, or came twice."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 30))):
        place = rng.randrange(len(out) + 1)
        end = min(len(out), place + rng.choice((1, 4, 50)))
        match rng.randrange(7):
            case 0 if place < len(out):
                out[place] ^= 1 << rng.randrange(8)
            case 1:
                out[place:end] = rng.randbytes(end - place)
            case 2:
                del out[place:end]
            case 3:
                out[place:place] = rng.randbytes(rng.randrange(20))
            case 4:
                out[place:place] = out[place:end]
            case 5:
                out[place:end] = rng.choice((b"\0", b"\xff", b"\r\n", b"--", b'"', b"\x7f")) * (end - place)
            case _ if rng.random() < 0.3:
                del out[place:]
    return bytes(out)


def picture(rng: random.Random) -> bytes:
    data = rng.choice(originals())
    if rng.random() < 0.2:
        other = rng.choice(originals())
        data = data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]
    return changed(rng, data) if rng.random() < 0.6 else data


def form(rng: random.Random, boundary: bytes) -> bytes:
    parts = []
    for _ in range(rng.choice((0, 1, 1, 2, 3, 40))):
        name = rng.choice((b"file", b"file", b"file", b"file", b"file", b"files", b"", b"\xff", b"f" * 300))
        file = rng.choice((b"a.png", b"", b"\xc3\xbc.jpg", b"../../x", b'q"', b"n" * 400))
        head = b'Content-Disposition: form-data; name="%s"; filename="%s"\r\n' % (name, file)
        head += (
            b"Content-Type: image/png\r\n" if rng.random() < 0.9 else rng.choice((b"X: y\r\n" * 30, b"nonsense\r\n"))
        )
        parts.append(b"--" + boundary + b"\r\n" + head + b"\r\n" + picture(rng)[:4000] + b"\r\n")
    whole = b"".join(parts) + b"--" + boundary + b"--\r\n"
    return changed(rng, whole) if rng.random() < 0.4 else whole


def query(rng: random.Random) -> str:
    pairs = [f"{rng.choice(QUERIES)}={rng.choice(VALUES)}" for _ in range(rng.choice((0, 0, 0, 0, 0, 1, 1, 2, 5)))]
    text = "&".join(pairs)
    return f"?{text}".encode().decode("latin-1") if pairs else ""


def mutated(rng: random.Random) -> Request:
    """One request."""
    kind: bytes | None
    if rng.random() < 0.5:
        boundary = b"bound%d" % rng.randrange(10)
        kind, body = b"multipart/form-data; boundary=" + boundary, form(rng, boundary)
    else:
        kind, body = rng.choice((b"image/jpeg", b"application/octet-stream")), picture(rng)
    if rng.random() < 0.15:
        kind = rng.choice((*TYPES, None))
    if rng.random() < 0.05:
        kind, body = b"application/json", changed(rng, b'{"texts": ["a photo", "\\u00e9"]}')
    headers = [(rng.choice(HEADERS), rng.choice(CONTENTS)) for _ in range(rng.choice((0, 0, 0, 1, 4)))]
    if kind is not None:
        headers.append((b"content-type", kind))
    plain = rng.random() < 0.7
    path, method = ("/v1/predict", "POST") if plain else (rng.choice(PATHS), rng.choice(METHODS))
    return Request(method, path + query(rng), tuple(headers), body)


def broken(rng: random.Random) -> bytes:
    """One request whose very framing may be broken."""
    return changed(rng, mutated(rng).raw()[:6000])
