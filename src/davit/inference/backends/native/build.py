"""The engine compiled for this machine, once, into a folder of the user's."""

import ctypes
import functools
import hashlib
import os
import platform
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

SOURCE = Path(__file__).parent / "source"
# Contraction makes fused multiply-adds of a * b + c. No -ffast-math: a NaN must come out where one went in. Names are
# hidden because a process may hold two engines, and the loader would give both the tables of the first.
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno"),
    *("-fPIC", "-shared", "-pthread", "-fvisibility=hidden"),
)
COMPILERS = ("g++", "clang++", "c++")


class NativeError(ValueError):
    """The native engine cannot be had on this machine; the message says why and what to do."""


@functools.cache
def load_library() -> ctypes.CDLL:
    """Load the engine, compiling it where that was not done yet for this source, compiler and processor.

    Raises:
        NativeError: no compiler, or it fails.
    """
    compiler = find_compiler()
    path = engine_file(compiler)
    if not path.exists():
        print("davit: compiling the native engine for this processor, once (some ten seconds)", file=sys.stderr)
        compile_library(SOURCE / "engine.cpp", path, compiler)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeError(f"the native engine cannot be loaded ({error}); delete {path} to compile it anew") from error


def engine_file(compiler: Sequence[str]) -> Path:
    """Where the engine is kept that this compiler makes of this source for this processor."""
    return cache_folder() / f"engine-{_key(compiler)}.so"


def find_compiler() -> tuple[str, ...]:
    """The command of a C++ compiler: the variable CXX, or the first there is of g++, clang++ and c++.

    Raises:
        NativeError: there is none.
    """
    for command in [named] if (named := os.environ.get("CXX")) else COMPILERS:
        words = shlex.split(command)
        if words and (found := shutil.which(words[0])):
            return (found, *words[1:])
    sought = named or ", ".join(COMPILERS)
    raise NativeError(
        f"the native engine is compiled on first use and there is no C++ compiler here (sought: {sought}); "
        "install g++, or compute with the eager backend"
    )


def cache_folder() -> Path:
    """Where compiled engines are kept: `davit/native` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "davit" / "native"


def compile_library(source: Path, target: Path, compiler: Sequence[str], flags: Sequence[str] = FLAGS) -> None:
    """Compile one file to a shared library that appears whole or not at all.

    Two processes may do so at once: the second replaces the first's library by an equal one.

    Raises:
        NativeError: the compiler fails, or the folder cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [*compiler, *flags, str(source), "-o", str(temporary)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[:5]
            raise NativeError(
                f"the native engine does not compile with {shlex.join(compiler)}; name another compiler in the "
                f"variable CXX, or compute with the eager backend. It says: {' | '.join(said)}"
            )
        temporary.replace(target)
    except OSError as error:
        raise NativeError(
            f"the native engine cannot be compiled into {target.parent} ({error}); name a folder to write to in the "
            "variable XDG_CACHE_HOME, or compute with the eager backend"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def source_key() -> str:
    """Name the source and the processor: what is measured with others tells nothing of these."""
    return _source_digest().hexdigest()[:16]


def _source_digest() -> "hashlib._Hash":
    digest = hashlib.sha256(processor_facts().encode() + b"\0")
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest


def _key(compiler: Sequence[str]) -> str:
    """Name what the library depends on: another source, compiler, flag or processor makes another."""
    digest = _source_digest()
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    for part in (*FLAGS, *compiler, version):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


def processor_facts() -> str:
    """The processor and what it can do, as the system lists it: libraries compiled for one crash on a lesser one."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
        return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
    return f"{platform.machine()} {platform.processor()}"
