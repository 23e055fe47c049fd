"""The native engine: compiler, build, and whether it computes what the model computes."""

import shlex
import subprocess
from collections.abc import Iterator

from davit.inference.backends.native.build import NativeError, cache_folder, engine_file, find_compiler
from davit.inference.doctor.cache import REMEDY, writable
from davit.inference.doctor.check import Check, failed, gibibytes


def check_native() -> Iterator[Check]:
    """Compile the engine where that was not done yet, and run its own check against a small model."""
    try:
        compiler = find_compiler()
    except NativeError as error:
        remedy = "install g++ or name a compiler in the variable CXX; eager computes meanwhile"
        yield Check(level="warning", name="compiler", told=str(error).partition(";")[0], remedy=remedy)
        return
    yield Check(level="ok", name="compiler", told=_version(compiler))
    path = engine_file(compiler)
    there = path.is_file()
    if not there and (reason := writable(cache_folder())):
        told = f"cannot be compiled into {cache_folder()} ({reason.strerror or reason})"
        yield Check(level="warning", name="engine", told=told, remedy=f"{REMEDY}; eager computes meanwhile")
        return
    yield _engine(path.name, there)


def _engine(name: str, there: bool) -> Check:
    """The engine refuses by itself to be made where it computes something else."""
    remedy = f"delete {cache_folder()} and try again, or name another compiler in CXX; eager computes meanwhile"
    try:
        from davit.inference.backends.native.engine import NativeEngine
        from davit.models.create import create_model

        NativeEngine(create_model("davit_pico", 2, window=4))
        size = gibibytes((cache_folder() / name).stat().st_size)
    except Exception as error:
        return failed("engine", error, remedy)
    made = "was compiled before" if there else "was compiled just now"
    told = f"{name} ({size}) {made}; it computes what the model computes, in float32 and int8"
    return Check(level="ok", name="engine", told=told)


def _version(compiler: tuple[str, ...]) -> str:
    command = shlex.join(compiler)
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{command}, which does not tell its version ({error})"
    return f"{command}: {(done.stdout.strip().splitlines() or ['no version'])[0]}"
