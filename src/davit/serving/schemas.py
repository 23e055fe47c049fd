"""The answers, as `/openapi.json` describes them."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from davit.inference.backends.protocol import Kind
from davit.serving.errors import STATUS


class ModelAbout(BaseModel):
    """A model that is served."""

    name: str
    kind: Kind
    classes: int
    size: tuple[int, int] = Field(description="height and width of what the model is given")
    backend: str
    explain: bool = Field(description="whether /v1/explain knows it")
    file: str


class ModelList(BaseModel):
    """All models that are served."""

    default: str
    models: list[ModelAbout]


class ProblemBody(BaseModel):
    """What is wrong, and the way out."""

    type: Literal[tuple(STATUS)]  # type: ignore[valid-type]
    message: str


class ErrorAnswer(BaseModel):
    """Any answer that is no success."""

    error: ProblemBody


class Top(BaseModel):
    """A class and its probability."""

    label: str
    index: int
    score: float


class Mask(BaseModel):
    """COCO's compressed run lengths."""

    size: tuple[int, int]
    counts: str


class Found(BaseModel):
    """An object in a picture."""

    label: str
    index: int
    score: float
    box: tuple[float, float, float, float] = Field(description="left, top, right, bottom in pixels of the picture")
    mask: Mask | None = None


class Answered(BaseModel):
    """What every picture's answer has."""

    file: str | None
    width: int
    height: int


class ClassificationAnswer(Answered):
    """The most likely classes, best first."""

    kind: Literal["classification"]
    top: list[Top]


class DetectionAnswer(Answered):
    """The objects in a picture, best first."""

    kind: Literal["detection"]
    objects: list[Found]
    colours: dict[str, str] = Field(description="#rrggbb of each class found, the same in every picture")


class SegmentationAnswer(Answered):
    """The share of each class, and with map=1 the class of each pixel."""

    kind: Literal["segmentation"]
    classes: dict[str, float]
    map: str | None = Field(None, description="data URI of a PNG with a palette, whose values are class indices")
    colours: dict[str, str] | None = Field(None, description="#rrggbb of each class found, as in the map")


class EmbeddingAnswer(Answered):
    """A vector of length 1."""

    kind: Literal["embedding"]
    embedding: list[float]


class BadPicture(BaseModel):
    """In the place of a picture that could not be answered while others of the request were."""

    file: str | None
    error: ProblemBody


class Predictions(BaseModel):
    """An entry for each picture, in order."""

    model: str
    results: list[ClassificationAnswer | DetectionAnswer | SegmentationAnswer | EmbeddingAnswer | BadPicture]


class Vector(BaseModel):
    """The vector of a picture or a text, of length 1."""

    file: str | None = None
    text: str | None = None
    embedding: list[float]


class Vectors(BaseModel):
    """An entry for each picture or text, in order."""

    model: str
    results: list[Vector | BadPicture]


class Texts(BaseModel):
    """Texts for an image-text model."""

    texts: list[str]


def picture_body(*, several: bool, texts: bool = False) -> dict[str, Any]:
    """What OpenAPI says of a body that brings pictures."""
    binary = {"type": "string", "format": "binary"}
    parts = {"type": "array", "items": binary} if several else binary
    form = {"type": "object", "required": ["file"], "properties": {"file": parts}}
    kinds = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
    content: dict[str, Any] = {"multipart/form-data": {"schema": form}, **{kind: {"schema": binary} for kind in kinds}}
    if texts:
        content["application/json"] = {"schema": Texts.model_json_schema()}
    return {"requestBody": {"required": True, "content": content}}


def problems(*types: str) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of the errors of a route."""
    by_status: dict[int | str, list[str]] = {}
    for type in types:
        by_status.setdefault(STATUS[type], []).append(type)
    return {status: {"model": ErrorAnswer, "description": ", ".join(found)} for status, found in by_status.items()}
