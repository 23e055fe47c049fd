"""The peak of this processor in float32: multiply-adds on registers, compiled here by the engine's builder."""

import ctypes
import hashlib
from pathlib import Path

from davit.inference.backends.native.build import cache_folder, compile_library, find_compiler

SOURCE = Path(__file__).parent / "peak.cpp"


def load_peak() -> ctypes.CDLL:
    """Load the loop, compiling it where that was not done yet for this source."""
    key = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    path = cache_folder().parent / "benchmarks" / f"peak-{key}.so"
    if not path.exists():
        compile_library(SOURCE, path, find_compiler())
    library = ctypes.CDLL(str(path))
    library.peak_flops.restype = ctypes.c_double
    library.peak_flops.argtypes = [ctypes.c_int, ctypes.c_double]
    return library


def peak_flops(threads: int, seconds: float = 0.1) -> float:
    """Floating-point operations per second of so many threads together."""
    return load_peak().peak_flops(threads, seconds)
