"""What the server refuses, by one name each."""

from dataclasses import dataclass
from math import ceil
from typing import Any

STATUS = {
    "bad_request": 400,
    "unauthorised": 401,
    "not_found": 404,
    "unknown_model": 404,
    "method_not_allowed": 405,
    "body_too_slow": 408,
    "embed_needs_checkpoint": 409,
    "explain_needs_checkpoint": 409,
    "body_too_large": 413,
    "unsupported_format": 415,
    "unsupported_media_type": 415,
    "bad_parameter": 422,
    "bad_multipart": 422,
    "no_image": 422,
    "image_damaged": 422,
    "too_many_images": 422,
    "too_many_pixels": 422,
    "too_many_texts": 422,
    "image_too_slow": 422,
    "internal_error": 500,
    "model_failed": 500,
    "loading": 503,
    "overloaded": 503,
    "shutting_down": 503,
    "deadline_exceeded": 504,
}
CLOSING = ("body_too_large", "body_too_slow", "shutting_down")  # after them the connection is closed


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why there is no answer, as a client is told.

    Attributes:
        type: a name of `STATUS`.
        message: one sentence: what is wrong, and the way out.
        retry_after: seconds after which another try may succeed; None where it will not.
    """

    type: str
    message: str
    retry_after: float | None = None

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.type]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"error": {"type": self.type, "message": self.message}}

    def headers(self) -> dict[str, str]:
        """HTTP headers beside the usual ones."""
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, ceil(self.retry_after)))}
        if self.type == "unauthorised":
            headers["WWW-Authenticate"] = "Bearer"
        if self.type in CLOSING:
            headers["Connection"] = "close"
        return headers


INTERNAL = Problem(
    type="internal_error", message="an error of the server itself: tell whoever runs it, its log says more"
)


class ProblemError(Exception):
    """A problem on its way to the client."""

    def __init__(self, type: str, message: str, retry_after: float | None = None) -> None:
        """Say what is wrong; see `Problem`."""
        super().__init__(message)
        self.problem = Problem(type=type, message=message, retry_after=retry_after)


class ClientGoneError(Exception):
    """The client has closed the connection; nobody waits for an answer."""
