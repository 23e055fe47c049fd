"""Options that the measuring verbs share, and what they say of the machine."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, get_args

from davit.inference.backends import BackendName

if TYPE_CHECKING:
    import torch

Size = tuple[int, int]  # height, width


def parse_backends(text: str) -> list[BackendName]:
    """Names of backends divided by commas, each once."""
    from davit.naming import unknown_name

    known = {name: name for name in get_args(BackendName) if name != "auto"}
    for name in (names := text.split(",")):
        if name not in known:
            raise unknown_name("backend", name, known)
    return [known[name] for name in dict.fromkeys(names)]


def parse_numbers(flag: str, text: str) -> list[int]:
    """Whole numbers from 1 on divided by commas, each once."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{flag} takes whole numbers divided by commas, such as 1,8, got {text!r}") from None
    if min(numbers) < 1:
        raise ValueError(f"{flag} must be at least 1, got {min(numbers)}")
    return list(dict.fromkeys(numbers))


def parse_sizes(text: str) -> list[Size]:
    """Heights and widths divided by commas, each once."""
    return list(dict.fromkeys(parse_size(part, "--sizes") for part in text.split(",")))


def parse_size(text: str, flag: str = "--size") -> Size:
    """A side in pixels, or height and width."""
    height, _, width = text.partition("x")
    try:
        size = int(height), int(width or height)
    except ValueError:
        raise ValueError(f"{flag} takes sides in pixels, such as 224 or 480x640, got {text!r}") from None
    if min(size) < 1:
        raise ValueError(f"{flag} must be at least 1, got {text}")
    return size


def choose_place(device: str | None, backends: list[BackendName] | None) -> "tuple[torch.device, list[BackendName]]":
    """Where to compute, and by what."""
    from davit.inference.backends.eager import choose_device

    place = choose_device("cpu" if device is None and backends and "native" in backends else device)
    return place, backends or (["eager", "native"] if place.type == "cpu" else ["eager"])


def check_measuring(seconds: float, threads: int | None) -> None:
    """Refuse times and threads that cannot be; set the threads."""
    for flag, value, least in (("--seconds", seconds, 0), ("--threads", threads, 1)):
        if value is not None and not value >= least:
            raise ValueError(f"{flag} must be at least {least}, got {value}")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def measured_with(engines: Iterable[str]) -> dict[str, Any]:
    """Hardware and versions, those of the engines of exported files and of timm among them."""
    from importlib.metadata import version

    from davit.train.run import environment

    packages = {"onnx": "onnxruntime", "openvino": "openvino", "timm": "timm", "timm compiled": "timm"}
    used = {packages[engine] for engine in engines if engine in packages}
    return {**environment(), "cpus": os.cpu_count(), **{name: version(name) for name in sorted(used)}}
