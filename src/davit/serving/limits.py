"""How much one client, and all of them together, may ask for."""

from dataclasses import dataclass, fields
from types import TracebackType
from typing import Self

from davit.serving.errors import ProblemError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may be, and how much may wait.

    Attributes:
        body_bytes: of one request.
        pixels: of one picture, read from its header before it is decoded; and of all that are being decoded at once.
        images: of one request.
        texts: of one request.
        decode_seconds: of one picture.
        deadline: seconds from a request's last byte to its answer; a client may ask for less.
        queue_images: accepted and not yet answered, of one model.
        queue_explanations: likewise.
        queue_bytes: of all bodies and prepared pictures in memory, of all models.
        connections: open at once.
        header_seconds: from the first byte of a request, or from the connection, to the end of its headers.
        body_seconds: without a byte of the body; on average it must come at `body_rate` at least.
        body_rate: bytes a second.
        idle_seconds: between two requests on one connection.
        drain_seconds: in which a server that was asked to stop still tells new requests so.
        stop_seconds: in which it answers what it has accepted.
    """

    body_bytes: int = 10 * 2**20
    pixels: int = 50_000_000
    images: int = 32
    texts: int = 256
    decode_seconds: float = 2.0
    deadline: float = 10.0
    queue_images: int = 256
    queue_explanations: int = 8
    queue_bytes: int = 512 * 2**20
    connections: int = 500
    header_seconds: float = 10.0
    body_seconds: float = 10.0
    body_rate: int = 16 * 2**10
    idle_seconds: float = 20.0
    drain_seconds: float = 1.0
    stop_seconds: float = 8.0

    def __post_init__(self) -> None:
        """Refuse what lets nothing through."""
        for field in fields(self):
            if not getattr(self, field.name) > 0 and field.name != "drain_seconds":
                raise ValueError(f"{field.name} must be over 0, got {getattr(self, field.name)}")
        if self.queue_images < self.images:
            raise ValueError(
                f"a queue of {self.queue_images} images never takes a request of {self.images}: make the queue at "
                "least as long as a request may be"
            )
        if self.queue_bytes < 2 * self.body_bytes:
            raise ValueError(
                f"a queue of {self.queue_bytes:,} bytes holds no two bodies of {self.body_bytes:,}: give it more"
            )


class ByteBudget:
    """Bytes that all requests hold together; for one thread."""

    def __init__(self, limit: int) -> None:
        """Nothing is held yet."""
        self.limit = limit
        self.held = 0

    def hold(self) -> "Hold":
        """Begin to hold bytes for one request."""
        return Hold(self)


class Hold:
    """What one request holds, given back when the context ends."""

    def __init__(self, budget: ByteBudget) -> None:
        """Hold nothing yet."""
        self._budget = budget
        self._bytes = 0

    def add(self, count: int) -> None:
        """Hold more.

        Raises:
            ProblemError: all requests together hold too much.
        """
        if self._budget.held + count > self._budget.limit:
            raise ProblemError(
                "overloaded", "the server holds as many bytes as it may: try again in a second", retry_after=1
            )
        self._budget.held += count
        self._bytes += count

    def __enter__(self) -> Self:
        """Hold."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give all back."""
        self._budget.held -= self._bytes
        self._bytes = 0
