"""What Prometheus is told."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "Requests answered.", "route", "status")
        self.seconds = Histogram(
            "davit_request_seconds",
            "From a request's headers to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.rejections = self._counter("rejections", "Requests and pictures refused, by type of error.", "reason")
        self.disconnects = self._counter("disconnects", "Requests whose client left before the answer.")
        self.reloads = self._counter(
            "reloads", "Files loaded anew: ok, or failed and the old model kept.", "model", "outcome"
        )
        self.images = self._counter("images_computed", "Images computed.", "model")
        self.failures = self._counter("batches_failed", "Batches in which the backend raised.", "model")
        self.dropped = self._counter("images_dropped", "Images that nobody waited for, not computed.", "model")
        self.batch_images = self._histogram("batch_images", "Images of a batch.", _IMAGES)
        self.batch_seconds = self._histogram("batch_seconds", "Time of a batch in the backend.", _SECONDS)
        self.in_flight = self._gauge("requests_in_flight", "Requests that have begun and are not answered.")
        self.connections = self._gauge("connections", "Open connections.")
        self.queue_images = self._gauge("queue_images", "Images accepted and not yet answered.", "model")
        self.queue_bytes = self._gauge("queue_bytes", "Bytes of bodies and prepared pictures in memory.")
        self.ready = self._gauge("ready", "Whether /readyz says yes.")

    def text(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        return generate_latest(self.registry)

    def observer(self, model: str) -> "ModelMetrics":
        """What a model's batcher tells."""
        return ModelMetrics(self, model)

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(f"davit_{name}", told, labels, registry=self.registry)

    def _gauge(self, name: str, told: str, *labels: str) -> Gauge:
        return Gauge(f"davit_{name}", told, labels, registry=self.registry)

    def _histogram(self, name: str, told: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"davit_{name}", told, ("model",), buckets=buckets, registry=self.registry)


class ModelMetrics:
    """An observer of one model's batcher."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        """Look up the model's counters once."""
        self._images = metrics.images.labels(model)
        self._failures = metrics.failures.labels(model)
        self._dropped = metrics.dropped.labels(model)
        self._batch_images = metrics.batch_images.labels(model)
        self._batch_seconds = metrics.batch_seconds.labels(model)

    def batch(self, images: int, seconds: float, *, failed: bool) -> None:
        """A batch was computed, or failed."""
        if failed:
            self._failures.inc()
            return
        self._images.inc(images)
        self._batch_images.observe(images)
        self._batch_seconds.observe(seconds)

    def dropped(self, images: int) -> None:
        """So many were waited for by nobody and not computed."""
        self._dropped.inc(images)
