"""What every request passes: keys, early refusals, a line in the log, numbers in the metrics."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Container, Sequence
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from davit.serving.errors import CLOSING, INTERNAL, Problem, ProblemError
from davit.serving.intake import drain
from davit.serving.service import Service

_log = logging.getLogger(__name__)
access_log = logging.getLogger(f"{__name__}.access")

POSTS = ("/v1/predict", "/v1/embed", "/v1/explain")
ROUTES = (*POSTS, "/v1/models", "/healthz", "/readyz", "/metrics", "/openapi.json")
OPEN = ("/healthz", "/readyz")  # whatever the keys, as the page is
GONE = 499  # what logs and metrics say of a request whose client left, as nginx does
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


class Gate:
    """Stands before the application."""

    def __init__(self, app: ASGIApp, service: Service, keys: Sequence[str] = (), *, page: Container[str] = ()) -> None:
        """Guard an application.

        Args:
            app: the application.
            service: says whether there is room.
            keys: any of which a request must bring; none lets everyone in.
            page: paths of the page.
        """
        self._app, self._service, self._page = app, service, page
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or say why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        passage = _Passage(scope, send)
        metrics = self._service.metrics
        metrics.in_flight.inc()
        try:
            await self._pass(scope, receive, passage)
        finally:
            metrics.in_flight.dec()
            route = "page" if scope["path"] in self._page else scope["path"] if scope["path"] in ROUTES else "other"
            seconds = time.monotonic() - passage.begun
            metrics.requests.labels(route, str(passage.status)).inc()
            metrics.seconds.labels(route).observe(seconds)
            if passage.status == GONE:
                metrics.disconnects.inc()
            access_log.info("", extra={"access": passage.line(seconds)})

    async def _pass(self, scope: Scope, receive: Receive, passage: "_Passage") -> None:
        try:
            self._check(scope)
            await self._app(scope, receive, passage.send)
        except ProblemError as error:
            if error.problem.type in CLOSING:
                await drain(receive, self._service.limits)
            await self._refuse(error.problem, passage)
        except asyncio.CancelledError:
            if passage.started:
                raise
            problem = Problem(
                type="shutting_down", message="the server is shutting down: ask another one", retry_after=5
            )
            await self._refuse(problem, passage)
        except Exception:
            _log.exception("an error of the server itself")
            if passage.started:
                return
            await self._refuse(INTERNAL, passage)

    async def _refuse(self, problem: Problem, passage: "_Passage") -> None:
        self._service.metrics.rejections.labels(problem.type).inc()
        await passage.send_problem(problem)

    def _check(self, scope: Scope) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        if self._keys and path not in OPEN and path not in self._page and not self._known(headers):
            raise ProblemError(
                "unauthorised", "a key is needed: send it as Authorization: Bearer KEY, or as X-API-Key: KEY"
            )
        if path in POSTS and scope["method"] == "POST":
            asked = parse_qs(scope["query_string"].decode("latin-1"))
            name = asked["model"][-1] if "model" in asked else None
            seconds = patience(headers, self._service.limits.deadline)
            self._service.check(name, seconds, explanation=path == "/v1/explain")

    def _known(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        given_bytes = given.encode("latin-1")  # as headers come
        return any([hmac.compare_digest(given_bytes, key) for key in self._keys])  # a list: all are compared


def patience(headers: Headers, limit: float) -> float:
    """Seconds that a request has, by its X-Deadline-Ms.

    Raises:
        ProblemError: no positive number.
    """
    given = headers.get("x-deadline-ms")
    if given is None:
        return limit
    if not given.isdecimal() or len(given) > 9 or not int(given):
        raise ProblemError(
            "bad_parameter", f"X-Deadline-Ms must be a number of milliseconds over 0, got {given[:50]!r}"
        )
    return min(limit, int(given) / 1000)


class _Passage:
    """One request passing."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.begun = time.monotonic()
        self.status = 0
        self.started = False
        self._scope, self._send = scope, send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        await self._send(message)

    async def send_problem(self, problem: Problem) -> None:
        body = json.dumps(problem.to_json()).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **problem.headers()}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})

    def line(self, seconds: float) -> dict[str, Any]:
        client = self._scope.get("client")
        return {
            "client": client[0] if client else None,
            "method": self._scope["method"],
            "path": ascii(self._scope["path"])[1:-1][:200],
            "status": self.status,
            "ms": round(1000 * seconds, 1),
        }
