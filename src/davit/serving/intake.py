"""What a request brings: pictures in a multipart form or as the body itself, or JSON; read under limits."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request
from starlette.types import Receive

from davit.serving.errors import ClientGoneError, ProblemError
from davit.serving.limits import Hold, Limits

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = b"file"
LONGEST_NAME = 200  # characters of a file's name that answers repeat
_DRAIN_SECONDS = 2.0
_OTHER_PARTS = 100  # beside pictures; each costs time, however short
_WAYS = (
    "send one or several pictures as multipart/form-data in parts named file, or one as the body with its Content-Type "
    "(image/jpeg, image/png, image/webp or application/octet-stream)"
)


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A picture as it came.

    Attributes:
        name: of its file, as the client calls it; None for a bare body.
        data: the file.
    """

    name: str | None
    data: bytes

    def called(self, position: int) -> str:
        """What errors call it."""
        return ascii(self.name)[1:-1] if self.name else f"picture {position}"


async def read_uploads(request: Request, limits: Limits, hold: Hold) -> list[Upload]:
    """Read the pictures of a request.

    Raises:
        ProblemError: no pictures, too many, too many bytes, too slow, or no form that can be read.
        ClientGoneError: the client left.
    """
    kind, options = _content_type(request)
    if kind == "multipart/form-data":
        return await _read_form(request, options, limits, hold)
    if not kind.startswith("image/") and kind != "application/octet-stream":
        raise ProblemError("unsupported_media_type", f"Content-Type is {kind or 'missing'}: {_WAYS}")
    data = await read_body(request, limits, hold)
    if not data:
        raise ProblemError("no_image", f"the body is empty: {_WAYS}")
    return [Upload(name=None, data=data)]


async def read_texts(request: Request, limits: Limits, hold: Hold) -> list[str] | None:
    """Read `{"texts": [...]}`; None where the request brings no JSON.

    Raises:
        ProblemError: JSON of another form, too many texts, too many bytes, or too slow.
        ClientGoneError: the client left.
    """
    if _content_type(request)[0] != "application/json":
        return None
    try:
        given = json.loads(await read_body(request, limits, hold))
    except (ValueError, RecursionError) as error:
        raise ProblemError("bad_request", 'the body is no JSON: send {"texts": ["a photo of a cat"]}') from error
    texts = given.get("texts") if isinstance(given, dict) else None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ProblemError("bad_parameter", 'the body must be {"texts": [...]} with at least one text, none empty')
    if len(texts) > limits.texts:
        raise ProblemError(
            "too_many_texts", f"{len(texts)} texts, over the limit of {limits.texts}: send fewer at once"
        )
    return texts


async def read_body(request: Request, limits: Limits, hold: Hold) -> bytes:
    """Read a whole body; see `chunks`."""
    async with aclosing(chunks(request, limits, hold)) as parts:
        return b"".join([part async for part in parts])


async def chunks(request: Request, limits: Limits, hold: Hold) -> AsyncGenerator[bytes]:
    """Yield the body as it comes; each byte is held.

    Raises:
        ProblemError: too many bytes, whether announced or not, too slow, or more than all requests may hold.
        ClientGoneError: the client left.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limits.body_bytes:
        raise _too_large(limits)
    begun, total, more = time.monotonic(), 0, True
    while more:
        left = begun + limits.body_seconds + total / limits.body_rate - time.monotonic()
        try:
            message = await asyncio.wait_for(request.receive(), max(0.0, min(limits.body_seconds, left)))
        except TimeoutError:
            raise ProblemError(
                "body_too_slow", f"the body stopped, or comes slower than {limits.body_rate:,} bytes/s: send it anew"
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body, more = message.get("body", b""), message.get("more_body", False)
        total += len(body)
        if total > limits.body_bytes:
            raise _too_large(limits)
        hold.add(len(body))
        if body:
            yield body


async def drain(receive: Receive, limits: Limits) -> None:
    """Read what is left of a refused body, within limits: one who is still sending would not see the answer."""
    total, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            while more and total <= limits.body_bytes:
                message = await receive()
                total += len(message.get("body", b""))
                more = message.get("more_body", False)


def _too_large(limits: Limits) -> ProblemError:
    return ProblemError(
        "body_too_large", f"the body is over the limit of {limits.body_bytes:,} bytes: send fewer or smaller pictures"
    )


def _content_type(request: Request) -> tuple[str, Mapping[bytes, bytes]]:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    return kind.decode("latin-1").strip().lower(), options


class _Form:
    """Collects the parts named `file`."""

    def __init__(self, limits: Limits) -> None:
        self.uploads: list[Upload] = []
        self.others: set[str] = set()
        self.complete = False
        self._limits = limits
        self._count = 0
        self._header, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._name: str | None = None
        self._parts: list[bytes] | None = None

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_data,
            "on_part_data": lambda data, start, end: (
                None if self._parts is None else self._parts.append(data[start:end])
            ),
            "on_part_end": self._end,
            "on_end": lambda: setattr(self, "complete", True),
        }

    def _begin(self) -> None:
        self._count += 1
        if self._count > self._limits.images + _OTHER_PARTS:
            raise ProblemError("bad_multipart", f"the form has over {self._count - 1} parts: send files alone")
        self._disposition, self._parts = b"", None

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _begin_data(self) -> None:
        _, options = parse_options_header(self._disposition)
        field = options.get(b"name", b"")
        if field != FIELD:
            self.others.add(field.decode(errors="replace")[:LONGEST_NAME])
            return
        if len(self.uploads) == self._limits.images:
            raise ProblemError(
                "too_many_images", f"over {self._limits.images} pictures in one request: send them in several"
            )
        name = options.get(b"filename", b"").decode(errors="replace")
        self._name = name[:LONGEST_NAME] or None
        self._parts = []

    def _end(self) -> None:
        if self._parts is not None:
            self.uploads.append(Upload(name=self._name, data=b"".join(self._parts)))
        self._parts = None


async def _read_form(request: Request, options: Mapping[bytes, bytes], limits: Limits, hold: Hold) -> list[Upload]:
    form = _Form(limits)
    try:
        if not (boundary := options.get(b"boundary")):
            raise FormParserError("no boundary")
        parser = MultipartParser(boundary, form.callbacks())
        async with aclosing(chunks(request, limits, hold)) as parts:
            async for part in parts:
                parser.write(part)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise ProblemError("bad_multipart", f"the form cannot be read ({_one_line(error)}): {_WAYS}") from error
    if not form.complete:
        raise ProblemError("bad_multipart", f"the form ends before its last boundary: {_WAYS}")
    if not form.uploads:
        found = f"parts named {', '.join(sorted(form.others))[:LONGEST_NAME]}" if form.others else "no parts"
        raise ProblemError("no_image", f"the form has {ascii(found)[1:-1]}: {_WAYS}")
    return form.uploads


def _one_line(error: Exception) -> str:
    return ascii(" ".join(str(error).split())[:LONGEST_NAME])[1:-1]
