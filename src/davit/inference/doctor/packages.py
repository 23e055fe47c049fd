"""Versions of what davit stands on, and which extras are there."""

import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING

from davit import __version__
from davit.inference.doctor.check import Check, failed

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_MODULES = {"pillow": "PIL", "scikit-learn": "sklearn", "open-clip-torch": "open_clip"}  # where the names differ
_USES = {
    "train": "the demo, the built-in digits, plots of runs",
    "tensorboard": "runtime.tensorboard=true",
    "onnx": "davit export --format onnx, and running such files",
    "openvino": "davit export to OpenVINO and int8, and running such files",
    "image-text": "reading texts: image-text training, --labels, davit embed --texts",
    "parquet": "captions and vectors in Parquet files",
    "serve": "davit serve",
    "hf": "the classes for Hugging Face transformers",
}


def check_versions() -> Iterator[Check]:
    """Python, davit, and each package that it cannot do without: there, importable, new enough."""
    yield Check(level="ok", name="python", told=f"{platform.python_version()}, {sys.executable}")
    yield _davit()
    for requirement in _requirements():
        if requirement.marker is None:
            yield _package(requirement, f"pip install --upgrade '{requirement}'")


def check_extras() -> Iterator[Check]:
    """The packages of each extra: there, importable, new enough."""
    extras: dict[str, list[Requirement]] = {}
    for requirement in _requirements():
        if requirement.marker is not None:
            for extra in _distribution_extras():
                if requirement.marker.evaluate({"extra": extra}):
                    extras.setdefault(extra, []).append(requirement)
    for extra, requirements in extras.items():
        yield _extra(extra, requirements)


def _extra(extra: str, requirements: "list[Requirement]") -> Check:
    name, remedy = f"[{extra}]", f"pip install --upgrade 'davit[{extra}]'"
    checks = [_package(requirement, remedy) for requirement in requirements]
    missing = [check.name for check in checks if check.told == _MISSING]
    if missing:
        use = f"; for {_USES[extra]}" if extra in _USES else ""
        told = f"not installed: {', '.join(missing)}{use}"
        return Check(level="warning", name=name, told=told, remedy=f"pip install 'davit[{extra}]'")
    told = ", ".join(f"{check.name} {check.told}" for check in checks)
    levels = {check.level for check in checks}
    if levels == {"ok"}:
        return Check(level="ok", name=name, told=told)
    return Check(level="problem" if "problem" in levels else "warning", name=name, told=told, remedy=remedy)


_MISSING = "not installed"


def _package(requirement: "Requirement", remedy: str) -> Check:
    """Import a package: an installed one may lack a library, or be made for another version of what it needs."""
    name = requirement.name
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(level="problem", name=name, told=_MISSING, remedy=remedy)
    try:
        import_module(_MODULES.get(name, name.replace("-", "_")))
    except (Exception, SystemExit) as error:  # whatever its own import may end with
        return failed(name, error, remedy)
    if requirement.specifier and not requirement.specifier.contains(version, prereleases=True):
        told = f"{version}, davit is made for {requirement.specifier}"
        return Check(level="warning", name=name, told=told, remedy=remedy)
    return Check(level="ok", name=name, told=version)


def _davit() -> Check:
    place = Path(__file__).parents[2]
    told = f"{__version__}, {place}"
    try:
        installed = metadata.version("davit")
    except metadata.PackageNotFoundError:
        told += "; not installed, so the versions and extras that it wants are not known"
        return Check(
            level="warning", name="davit", told=told, remedy="pip install . in a checkout, or pip install davit"
        )
    if installed != __version__:
        told += f"; but pip installed {installed}"
        return Check(level="warning", name="davit", told=told, remedy="pip install --upgrade davit")
    return Check(level="ok", name="davit", told=told)


def _requirements() -> "list[Requirement]":
    from packaging.requirements import Requirement

    with suppress(metadata.PackageNotFoundError):
        return [Requirement(line) for line in metadata.requires("davit") or ()]
    return []


def _distribution_extras() -> list[str]:
    return metadata.metadata("davit").get_all("Provides-Extra") or []
