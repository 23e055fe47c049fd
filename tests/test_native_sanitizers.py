"""The native engine under sanitizers: no read or write beside its memory, no undefined arithmetic, no race."""

import os
import subprocess
from pathlib import Path

import pytest

from davit.inference.backends.native.build import SOURCE, find_compiler

FUZZ = Path(__file__).parent / "native_fuzz.cpp"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["-march=native -DDAVIT_PAIRED=1", "-march=native -DDAVIT_PAIRED=0", "-mno-avx"])
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_random_architectures_and_sizes(tmp_path, sanitizers, target):
    program = tmp_path / "fuzz"
    flags = [
        "-std=c++17",
        "-O1",
        "-g",
        *target.split(),
        f"-fsanitize={sanitizers}",
        "-fno-sanitize-recover=all",
        "-pthread",
    ]
    compiled = subprocess.run(
        [*find_compiler(), *flags, f"-I{SOURCE}", str(FUZZ), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find" in compiled.stderr or "unrecognized" in compiled.stderr:
        pytest.skip("this compiler comes without the sanitizers, or without this target")
    assert compiled.returncode == 0, compiled.stderr
    seed = int.from_bytes(os.urandom(2))
    done = subprocess.run([program, "12", str(seed)], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.returncode) == (["96"], 0), f"seed {seed}: {done.stdout}{done.stderr[-4000:]}"
