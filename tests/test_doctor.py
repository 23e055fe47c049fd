"""`davit doctor` on machines with all kinds of faults."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from davit.cli import main
from davit.decoding import FORMATS
from davit.inference.doctor import graphics, machine, packages, pictures, self_test
from davit.inference.doctor.cache import writable
from davit.inference.doctor.check import Check
from davit.inference.doctor.examine import TOPICS, examine

ROOT = Path(__file__).parent.parent
EPYC = "model name\t: AMD EPYC 9654\nflags\t\t: fpu sse2 avx2 fma avx512f avx512bw avx512vl avx512dq avx512_vnni"


def levels(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.level for check in checks}


def doctor(*words: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run in a process whose Python finds the modules in `path` first."""
    search = os.pathsep.join([*([str(path)] if path else []), str(ROOT / "src")])
    return subprocess.run(
        [sys.executable, "-m", "davit", "doctor", *words],
        env={**os.environ, "PYTHONPATH": search, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def broken(tmp_path: Path, package: str, code: str) -> Path:
    """A folder with a package that ends as the code says when it is imported."""
    folder = tmp_path / "broken"
    folder.mkdir(exist_ok=True)
    (folder / f"{package}.py").write_text(code)
    return folder


def test_a_sound_machine_works_and_nothing_is_fetched(tmp_path: Path) -> None:
    told = tmp_path / "connected.txt"
    code = f"import socket\ndef refuse(*_): open({str(told)!r}, 'a').write('x'); raise OSError('no network')\n"
    folder = broken(tmp_path, "sitecustomize", code + "socket.socket.connect = socket.getaddrinfo = refuse\n")
    topics = [topic for topic in TOPICS if topic != "extras"]  # importing all of them takes a minute on a busy machine
    done = doctor(*topics, "--json", path=folder)
    answer = json.loads(done.stdout)
    problems = [check for check in answer["checks"] if check["level"] == "problem"]
    assert problems == []
    assert (done.returncode, answer["works"], done.stderr) == (0, True, "")
    assert [*dict.fromkeys(check["topic"] for check in answer["checks"])] == topics
    assert sum(answer["counts"].values()) == len(answer["checks"])
    seen = {check["name"]: check for check in answer["checks"]}
    assert {"python", "torch", "timm", "processor", "cache", "formats", "eager", "training", "files"} <= set(seen)
    assert seen["torch"]["told"] == metadata.version("torch")
    error = re.search(r"differ by (\S+) from", seen["eager"]["told"])
    assert error is not None
    assert 0 < float(error[1]) < 1e-5
    assert not told.exists()


def test_a_torch_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    folder = broken(tmp_path, "torch", "raise OSError('libtorch_cpu.so: cannot open shared object file')")
    done = doctor("versions", "machine", "graphics", "cache", "pictures", "native", "model", path=folder)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert re.search(r"problem +torch +OSError: libtorch_cpu.so: cannot open", done.stdout)
    assert re.search(r"-> pip install --upgrade 'torch>=", done.stdout)
    assert re.search(r"ok +formats +Pillow", done.stdout), "what needs no torch is looked at all the same"
    assert re.search(r"ok +processor", done.stdout)
    assert "not all of davit works here" in done.stdout


@pytest.mark.parametrize(
    "code", ["import os; os.abort()", "import os; os.kill(os.getpid(), 11)", "raise SystemExit(3)"]
)
def test_a_package_that_ends_the_process_is_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.syspath_prepend(str(broken(tmp_path, "PIL", code)))
    found = dict(examine(["pictures", "cache"]))
    assert list(found) == ["pictures", "cache"]
    assert found["pictures"][-1].level == "problem"
    wanted = {"os.abort": "SIGABRT", "os.kill": "SIGSEGV", "SystemExit": "SystemExit: 3"}
    assert next(value for key, value in wanted.items() if key in code) in found["pictures"][-1].told
    assert levels(found["cache"]).keys() >= {"cache", "kept", "weights"}


def test_a_package_that_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(broken(tmp_path, "PIL", "import time; time.sleep(600)")))
    ((topic, checks),) = examine(["pictures"], patience=3)
    assert (topic, levels(checks)) == ("pictures", {"process": "problem"})
    assert checks[0].told.startswith("no answer for 3 s")


def test_without_a_command_line_parser_it_still_answers(tmp_path: Path) -> None:
    folder = broken(tmp_path, "tyro", "raise ImportError('no tyro')")
    done = doctor("cache", "--json", path=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert {check["topic"] for check in json.loads(done.stdout)["checks"]} == {"cache"}


def test_without_a_compiler_davit_works(tmp_path: Path) -> None:
    done = doctor("native", "model", "--json", CXX="no-such-compiler", XDG_CACHE_HOME=str(tmp_path / "cache"))
    answer = json.loads(done.stdout)
    seen = {check["name"]: check for check in answer["checks"]}
    assert done.returncode == 0
    assert seen["compiler"]["level"] == "warning"
    assert "no-such-compiler" in seen["compiler"]["told"]
    assert "install g++" in seen["compiler"]["remedy"]
    assert (seen["native"]["level"], seen["eager"]["level"]) == ("warning", "ok")


def test_an_unwritable_cache_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    hub = str(tmp_path / "file" / "hub")
    done = doctor("cache", "native", "--json", XDG_CACHE_HOME=str(tmp_path / "file" / "cache"), HF_HOME=hub)
    seen = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0
    for name, variable in (("cache", "XDG_CACHE_HOME"), ("weights", "HF_HOME"), ("engine", "XDG_CACHE_HOME")):
        assert seen[name]["level"] == "warning"
        assert variable in seen[name]["remedy"]
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may write anywhere")
def test_a_read_only_folder_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    assert isinstance(writable(tmp_path / "davit"), OSError)


def test_looking_at_the_cache_leaves_nothing_behind(tmp_path: Path) -> None:
    assert writable(tmp_path / "not" / "yet") is None
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_does_not_load_is_a_problem(tmp_path: Path) -> None:
    """What lies in the cache is no library, and no compiler would make another."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        '#!/bin/sh\nfor last; do :; done\n[ "$1" = --version ] && echo fake 1 && exit\necho junk > $last\n'
    )
    compiler.chmod(0o755)
    done = doctor("native", "--json", CXX=str(compiler), XDG_CACHE_HOME=str(tmp_path / "cache"))
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert checks["compiler"]["told"] == f"{compiler}: fake 1"
    assert checks["engine"]["level"] == "problem"
    assert "delete" in checks["engine"]["remedy"]


@pytest.mark.parametrize("fault", ["wrong", "nan", "raises"])
def test_operators_that_compute_wrong_are_found(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    right = torch.nn.functional.layer_norm

    def layer_norm(images, *rest):
        if images.dtype == torch.float64:
            return right(images, *rest)
        if fault == "raises":
            raise RuntimeError("no kernel image is available")
        return right(images, *rest) * (1.01 if fault == "wrong" else float("nan"))

    monkeypatch.setattr(torch.nn.functional, "layer_norm", layer_norm)
    found = {check.name: check for check in self_test.check_model()}
    assert (found["eager"].level, found["training"].level) == ("problem", "problem")
    assert "pytorch.org" in found["eager"].remedy
    assert found["files"].level == "ok"


def test_the_self_test_leaves_the_random_generator_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    list(self_test.check_model())
    assert torch.equal(torch.rand(2), wanted)


def test_operators_of_another_torchvision_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.ops.nms", lambda *_: torch.tensor([0, 1, 2]))
    assert self_test._operators(self_test.small_model()).level == "problem"


def test_extras_name_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def some(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "pyarrow" else version(name)

    def importing(name: str) -> None:
        if name == "open_clip":
            raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(metadata, "version", some)
    monkeypatch.setattr(packages, "import_module", importing)
    found = {check.name: check for check in packages.check_extras()}
    assert (found["[onnx]"].level, found["[onnx]"].remedy) == ("warning", "pip install 'davit[onnx]'")
    assert found["[onnx]"].told.startswith("not installed: onnxruntime; for davit export")
    assert (found["[parquet]"].level, found["[image-text]"].level) == ("warning", "problem")
    assert "0.0.1, davit is made for >=" in found["[parquet]"].told
    assert "libGL.so.1" in found["[image-text]"].told
    assert found["[train]"].level == "ok"


def test_every_extra_and_package_is_known() -> None:
    """Each extra of the project says what it is for, and each package of one can be imported under the name we try."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(packages._USES) == set(project["optional-dependencies"])
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    for line in lines:
        name = re.split(r"[>=<\[]", line)[0].lower().replace("_", "-")
        module = packages._MODULES.get(name, name.replace("-", "_"))
        assert util.find_spec(module) is not None, name


def test_a_davit_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", none)
    monkeypatch.setattr(metadata, "requires", none)
    assert levels(list(packages.check_versions())) == {"python": "ok", "davit": "warning"}
    assert list(packages.check_extras()) == []


@pytest.mark.parametrize(
    ("facts", "level", "told"),
    [
        (EPYC, "ok", "AVX2, AVX-512, VNNI"),
        (EPYC.replace("avx512_vnni", "avx_vnni"), "ok", "VNNI"),
        (EPYC.partition(" avx512f")[0], "ok", "AVX2; no AVX-512, no VNNI"),
        ("flags : fpu sse2 avx", "warning", "no AVX2"),
        ("Features : fp asimd", "ok", "NEON"),
        ("arm64 arm", "ok", "not told"),
        ("", "ok", "not told"),
    ],
)
def test_instructions_are_read(facts: str, level: str, told: str) -> None:
    check = machine._instructions(facts)
    assert check.level == level
    assert told in check.told


def test_little_memory_and_too_many_threads_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 300e6)
    monkeypatch.setattr(machine, "usable_cpus", lambda: 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    found = {check.name: check for check in machine.check_machine()}
    assert (found["memory"].level, found["threads"].level) == ("warning", "warning")
    assert "286.1 MiB" in found["memory"].told
    assert "OMP_NUM_THREADS=1" in found["threads"].remedy


@pytest.mark.parametrize(("cuda", "told"), [(None, "built for CPUs only"), ("13.0", "built for CUDA 13.0")])
def test_a_card_that_torch_does_not_see(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: str | None, told: str
) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA H100\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (check,) = graphics.check_graphics()
    assert check.level == "warning"
    assert check.told == f"NVIDIA H100: not seen by PyTorch, which is {told}"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (check,) = graphics.check_graphics()
    assert (check.level, check.told) == ("ok", "none; models compute on the CPU")


@pytest.mark.parametrize(
    ("error", "level"), [(1e-6, "ok"), (0.5, "problem"), (float("nan"), "problem"), (None, "problem")]
)
def test_cards_are_tried(monkeypatch: pytest.MonkeyPatch, error: float | None, level: str) -> None:
    def product_error(*_: object) -> float:
        if error is None:
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
        return error

    about = SimpleNamespace(name="NVIDIA H100", total_memory=80 << 30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80"])
    monkeypatch.setattr(graphics, "_product_error", product_error)
    (check,) = graphics.check_graphics()
    assert check.level == level
    if error is not None:
        assert "NVIDIA H100, 80.0 GiB, compute capability 9.0" in check.told
        assert "this PyTorch has code for sm_80" in check.told


def test_a_matrix_product_is_measured() -> None:
    assert 0 < graphics._product_error(torch, "cpu") < 1e-5


def test_formats_that_cannot_be_read_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pictures._WRITTEN, "WEBP", "AAAA")
    encoded = pictures._encoded
    monkeypatch.setattr(pictures, "_encoded", lambda name: b"" if name == "PNG" else encoded(name))
    found = {check.name: check for check in pictures.check_pictures()}
    assert {name: check.level for name, check in found.items()} == {
        "WEBP": "warning",
        "PNG": "problem",
        "formats": "ok",
    }
    read = found["formats"].told.partition("reads ")[2].split(", ")
    assert set(read) == set(FORMATS) - {"WEBP", "PNG"}


def test_an_unknown_topic_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "nativ"]) == 2
    assert "Did you mean 'native'" in capsys.readouterr().err


def test_help_and_the_telling_process_import_no_torch() -> None:
    script = (
        "import sys, davit.cli.doctor, davit.inference.doctor.examine, davit.inference.doctor.check;"
        "print({'torch', 'numpy', 'PIL', 'tyro'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
