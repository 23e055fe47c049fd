"""`davit serve`: models behind an address."""

import json as jsonlib
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from davit.inference.backends import BackendName

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

    from davit.serving.restarting import Life
    from davit.serving.served import ModelSource
    from davit.serving.service import Explain

_HELP = """Answer requests over HTTP, with a page to try it at /.

  davit serve --model mine.safetensors
  davit serve --model birds=birds.safetensors --model cars=cars.onnx --default birds --port 8080
  davit serve --model image_text.safetensors --labels 'cat,dog,a red bus'
  curl -F file=@cat.jpg http://127.0.0.1:8000/v1/predict

Pictures of many requests are computed together, those of one size. A queue that is full, or so long that the deadline
would pass, refuses with 503 and Retry-After. A file that changes is loaded beside the old model, checked and exchanged
for it without a lost request; SIGHUP does so at once. SIGTERM and Ctrl-C answer what was accepted and refuse the rest
(exit codes 0 and 130; 2 where nothing could be begun). docs/serve.md has all of it.
"""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

    def serve(
        *,
        model: Annotated[
            UseAppendAction[tuple[str, ...]], arg(metavar="[NAME=]MODEL", help_behavior_hint="(required)")
        ],
        default: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None,
        host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1",
        port: Annotated[int, arg(metavar="N")] = 8000,
        backend: BackendName = "auto",
        device: Annotated[str | None, arg(metavar="NAME")] = None,
        variant: Annotated[str | None, arg(metavar="NAME")] = None,
        labels: Annotated[str | None, arg(metavar="NAME,...|FILE", help_behavior_hint="")] = None,
        templates: Annotated[str | None, arg(metavar="TEXT|FILE", help_behavior_hint="")] = None,
        batch_size: Annotated[int, arg(metavar="N")] = 8,
        threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
        workers: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
        deadline: Annotated[float, arg(metavar="SECONDS")] = 10.0,
        queue: Annotated[int, arg(metavar="IMAGES")] = 256,
        queue_mib: Annotated[int, arg(metavar="MIB")] = 512,
        max_body_mib: Annotated[float, arg(metavar="MIB")] = 10.0,
        max_pixels: Annotated[int, arg(metavar="N")] = 50_000_000,
        max_images: Annotated[int, arg(metavar="N")] = 32,
        connections: Annotated[int, arg(metavar="N")] = 500,
        watch: Annotated[float, arg(metavar="SECONDS")] = 2.0,
        api_keys: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
        trust: bool = False,
        restart: bool = False,
        json: bool = False,
    ) -> int:
        """Serve.

        Args:
            model: A checkpoint, a name of `davit models`, or a file of `davit export`; again for several. Without a
                NAME requests call it by its file's.
            default: The model of requests that name none; by default the first.
            host: 0.0.0.0 for all networks of this machine.
            port: 0 for any that is free.
            backend: What computes checkpoints: eager is PyTorch, native our engine for CPUs, auto the faster of both on
                this machine.
            device: cpu, cuda, cuda:1 and so on; by default the graphics card if there is one.
            variant: What MODEL is, where its tensors leave it open: a name of `davit models`.
            labels: What an image-text model is to look for: names between commas, or a file with one a line. Without
                them it gives vectors.
            templates: How a name becomes a caption: a sentence with {} for it, a file of them, or simple or imagenet
                for open_clip's 7 and 80; by default the model's own.
            batch_size: Most images of one size computed at once; graphics cards like more.
            threads: Of each model's computation; by default as many as PyTorch takes.
            workers: Threads that decode; by default one for each processor, at most eight.
            deadline: From a request's last byte to its answer; X-Deadline-Ms of a request shortens it.
            queue: Images of a model accepted and not yet answered.
            queue_mib: Bodies and prepared pictures in memory, of all models.
            max_body_mib: Of one request.
            max_pixels: Of one picture, read from its header.
            max_images: Of one request.
            connections: Open at once.
            watch: How often to look whether a model's file has changed; 0 never looks.
            api_keys: A file with one key a line, any of which requests must then bring.
            trust: Run the code that a file of `davit export --format torch` is.
            restart: Have a small process beside the server that holds the address and starts the server anew when it is
                killed, as for want of memory, or crashes. Whoever connects meanwhile waits.
            json: Log and tell in lines of JSON.
        """
        from davit.serving.address import address_of, open_socket

        _log_to_stderr(json=json)
        taken = open_socket(host, port) if restart else None
        life = _keep_alive() if restart else None
        if isinstance(life, int):
            return _leave(life)
        _require()
        from davit.explain.page import drawing_script
        from davit.inference.zero_shot import parse_labels
        from davit.serving.limits import Limits
        from davit.serving.metrics import Metrics
        from davit.serving.reload import Loader
        from davit.serving.running import serve as run
        from davit.serving.served import ModelSource
        from davit.serving.service import Service

        if templates is not None and labels is None:
            raise ValueError("--templates says how names of --labels are put: give both")
        for name, value, least in (
            ("batch-size", batch_size, 1),
            ("threads", threads, 1),
            ("workers", workers, 1),
            ("watch", watch, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"--{name} must be at least {least}, got {value}")
        looked_for = None if labels is None else parse_labels(labels, templates)
        sources = [
            ModelSource(
                name=name,
                source=source,
                variant=variant,
                labels=looked_for,
                backend=backend,
                device=device,
                trust=trust,
            )
            for name, source in _named(model)
        ]
        limits = Limits(
            deadline=deadline,
            queue_images=queue,
            queue_bytes=queue_mib * 2**20,
            body_bytes=int(max_body_mib * 2**20),
            pixels=max_pixels,
            images=max_images,
            connections=connections,
        )
        keys = _keys(api_keys) if api_keys else []
        service = Service(
            limits=limits, metrics=Metrics(), explain=_explainer(), drawing=drawing_script(), workers=workers
        )
        service.default = _default(default, sources)
        taken = taken or open_socket(host, port)
        address = address_of(taken)
        with taken:
            number = run(
                service,
                lambda: Loader(service, batch_size=batch_size, threads=threads, watch=watch),
                sources,
                taken,
                keys=keys,
                tell=logging.getLogger("davit.serving").info,
                ready=lambda: _announce(address, service.models, life, json=json),
            )
        return _leave(130 if number == signal.SIGINT else 0)

    return tyro.cli(serve, prog="davit serve", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def _keep_alive() -> "int | Life":
    """Call `keep_alive` and log what it tells."""
    from davit.serving.restarting import keep_alive

    return keep_alive(logging.getLogger("davit.serving").warning)


def _leave(code: int) -> NoReturn:
    """End the process: everything is written, and to take PyTorch apart first would take seconds more."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def _require() -> None:
    """Refuse where the extra is not installed."""
    for name in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        try:
            __import__(name)
        except ImportError as error:
            raise ValueError(f"davit serve needs {name}: pip install 'davit[serve]'") from error


def _named(models: Sequence[str]) -> list[tuple[str, str]]:
    """Names and sources, as `--model` has them."""
    found: dict[str, str] = {}
    for given in models:
        name, equals, source = given.partition("=")
        if not equals or not _NAME.fullmatch(name) or Path(given).exists():
            name, source = Path(given).stem if Path(given).exists() else given, given
        if not source or not name or given.startswith("="):
            raise ValueError(f"--model is a file, a name of davit models, or NAME=MODEL; got {given!r}")
        if name in found:
            raise ValueError(f"two models are called {name}: name them, --model a={found[name]} --model b={source}")
        found[name] = source
    return list(found.items())


def _default(name: str | None, sources: "Sequence[ModelSource]") -> str:
    from davit.naming import unknown_name

    names = [source.name for source in sources]
    if name is not None and name not in names:
        raise unknown_name("model for --default", name, names)
    return name or names[0]


def _keys(path: Path) -> list[str]:
    keys = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not keys or not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ValueError(f"{path} must hold keys, one a line, of ASCII characters without spaces")
    return keys


def _explainer() -> "Explain":
    """What explains a picture, imported when it is first asked for."""

    def explain(model: "nn.Module", picture: "Image", class_index: int | None) -> dict[str, Any]:
        from davit.explain.explanation import explain_picture

        return explain_picture(model, picture, class_index=class_index)

    return explain


def _announce(address: str, models: "Any", life: "Life | None", *, json: bool) -> None:
    if life:
        life.ready()
    names = list(models)
    if json:
        print(jsonlib.dumps({"url": address, "models": names}), flush=True)
    else:
        print(f"Serving {', '.join(names)} on {address} - a page to try it is there, Ctrl-C ends it", flush=True)


def _log_to_stderr(*, json: bool) -> None:
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(json=json))
    ours, theirs = logging.getLogger("davit.serving"), logging.getLogger("uvicorn.error")
    for log, level in ((ours, logging.INFO), (theirs, logging.CRITICAL)):
        log.handlers, log.propagate = [handler], False
        log.setLevel(level)


class _Lines(logging.Formatter):
    """A line for each request and event: for people or for programs."""

    def __init__(self, *, json: bool) -> None:
        super().__init__()
        self._json = json

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        access: dict[str, Any] | None = getattr(record, "access", None)
        told = {"message": record.getMessage()} if access is None else access
        if record.exc_info:
            told["trace"] = self.formatException(record.exc_info)
        if self._json:
            return jsonlib.dumps({"time": when, "level": record.levelname.lower(), **told})
        if access is None:
            return " ".join([when, record.levelname.lower(), *told.values()])
        return "{time} {client} {method} {path} {status} {ms} ms".format(time=when, **access)
