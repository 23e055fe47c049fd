"""The routes."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from davit import __version__
from davit.serving.answers import Wanted
from davit.serving.assets import page_files
from davit.serving.errors import INTERNAL, ClientGoneError, Problem, ProblemError
from davit.serving.gate import GONE, Gate, patience
from davit.serving.intake import drain
from davit.serving.schemas import ModelList, Predictions, Vectors, picture_body, problems
from davit.serving.service import Service

_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_REFUSED = (
    "unauthorised",
    "unknown_model",
    "loading",
    "overloaded",
    "shutting_down",
    "deadline_exceeded",
    "model_failed",
)
_BODY = ("body_too_large", "body_too_slow", "unsupported_media_type", "bad_multipart", "bad_parameter", "no_image")
_PICTURE = ("unsupported_format", "image_damaged", "too_many_images", "too_many_pixels", "image_too_slow")

Name = Annotated[str | None, Query(alias="model", description="one of /v1/models; by default the default one")]


def create_app(service: Service, keys: Sequence[str] = ()) -> ASGIApp:
    """Put a service behind HTTP.

    Args:
        service: answers; its models may still be loaded.
        keys: any of which requests must bring; none lets everyone in.
    """
    app = FastAPI(
        title="davit serve",
        version=__version__,
        description="Dual Attention Vision Transformers: classes, objects, maps, vectors and explanations of pictures.",
        docs_url=None,  # their scripts come from elsewhere
        redoc_url=None,
    )
    _add_answers(app, service)
    _add_states(app, service)
    page = page_files(service.drawing)
    _add_page(app, page)
    _add_errors(app, service)
    return Gate(app, service, keys, page=page)


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", responses={200: {"model": ModelList}, **problems("unauthorised", "loading")})
    async def models() -> Response:
        """The models that are served."""
        explains = service.explain is not None
        service.model(None)
        return JSONResponse(
            {"default": service.default, "models": [one.about(explains=explains) for one in service.models.values()]}
        )

    @app.post(
        "/v1/predict",
        responses={200: {"model": Predictions}, **problems(*_REFUSED, *_BODY, *_PICTURE)},
        openapi_extra=picture_body(several=True),
    )
    async def predict(
        request: Request,
        model: Name = None,
        top: Annotated[int, Query(ge=1, le=100_000, description="classes to name")] = 5,
        threshold: Annotated[float, Query(ge=0, le=1, description="objects that score less are left out")] = 0.5,
        map: Annotated[bool, Query(description="the class of each pixel as a picture, too")] = False,
    ) -> Response:
        """What is in pictures: classes, objects, maps or vectors, as the model has them."""
        wanted = Wanted(top=top, threshold=threshold, map=map)
        return JSONResponse(await service.predict(request, model, wanted, _patience(request, service)))

    @app.post(
        "/v1/embed",
        responses={200: {"model": Vectors}, **problems(*_REFUSED, *_BODY, *_PICTURE, "embed_needs_checkpoint")},
        openapi_extra=picture_body(several=True, texts=True),
    )
    async def embed(request: Request, model: Name = None) -> Response:
        """Vectors of pictures; with an image-text model of texts, too."""
        return JSONResponse(await service.embed(request, model, _patience(request, service)))

    @app.post(
        "/v1/explain",
        responses=problems(*_REFUSED, *_BODY, *_PICTURE, "explain_needs_checkpoint"),
        openapi_extra=picture_body(several=False),
    )
    async def explain(
        request: Request,
        model: Name = None,
        index: Annotated[int | None, Query(alias="class", description="what to explain; by default the best")] = None,
    ) -> Response:
        """What a model looks at in one picture."""
        return JSONResponse(await service.explanation(request, model, index, _patience(request, service)))


def _patience(request: Request, service: Service) -> float:
    return patience(request.headers, service.limits.deadline)


def _add_states(app: FastAPI, service: Service) -> None:
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> Response:
        """Whether the process can work; restart it where not."""
        return _state("alive" if service.alive else "a model computes no more: restart the server", ok=service.alive)

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz")
    async def readyz() -> Response:
        """Whether requests may be sent here."""
        state = "shutting down" if service.stopping else "ready" if service.ready else "loading"
        return _state(state, ok=service.accepts)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _state(state: str, *, ok: bool) -> Response:
    return JSONResponse({"status": state}, status_code=200 if ok else 503)


def _add_page(app: FastAPI, page: Mapping[str, tuple[bytes, str]]) -> None:
    def add(path: str, content: bytes, kind: str) -> None:
        @app.head(path, include_in_schema=False)
        @app.get(path, include_in_schema=False)
        async def file() -> Response:
            headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
            return Response(content, media_type=kind, headers=headers)

    for path, (content, kind) in page.items():
        add(path, content, kind)


def _add_errors(app: FastAPI, service: Service) -> None:
    def told(problem: Problem) -> Response:
        service.metrics.rejections.labels(problem.type).inc()
        return JSONResponse(problem.to_json(), status_code=problem.status, headers=problem.headers())

    @app.exception_handler(ProblemError)
    async def problem(request: Request, error: ProblemError) -> Response:
        if error.problem.type == "body_too_large":
            await drain(request.receive, service.limits)
        return told(error.problem)

    @app.exception_handler(Exception)
    async def other(_request: Request, _error: Exception) -> Response:
        return told(INTERNAL)  # and it is raised on, to be logged

    @app.exception_handler(ClientGoneError)
    async def gone(_request: Request, _error: ClientGoneError) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(RequestValidationError)
    async def parameter(_request: Request, error: RequestValidationError) -> Response:
        first: dict[str, Any] = error.errors()[0]
        given = ascii(first.get("input"))[:100]
        message = f"{first['loc'][-1]}: {first['msg'][:1].lower()}{first['msg'][1:]}, got {given}"
        return told(Problem(type="bad_parameter", message=message))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            message = f"{request.url.path} answers {allowed}, not {request.method}"
            response = told(Problem(type="method_not_allowed", message=message))
            response.headers["Allow"] = allowed
            return response
        if error.status_code == 404:
            return told(Problem(type="not_found", message="there is nothing here; /openapi.json lists what there is"))
        return told(Problem(type="bad_request", message=str(error.detail)))
