"""The house rules that a machine can check: layers, sizes of files, lean imports, and a wheel that works elsewhere."""

import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

from davit.cli import VERBS

ROOT = Path(__file__).parent.parent
BUDGET = 300


def python(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **options)


def fastest(*arguments: str) -> float:
    """Best of five, for the machine may be busy."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        assert python(*arguments).returncode == 0
        times.append(time.perf_counter() - started)
    return min(times)


def test_import_contracts_hold():
    done = subprocess.run(["lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False, env=_path())
    assert done.returncode == 0, done.stdout


def _path() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_a_folder_without_a_place_breaks_the_contract(tmp_path):
    (tmp_path / "src").symlink_to(ROOT / "src")
    text = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(text.replace('  "tasks",\n', ""))
    done = subprocess.run(["lint-imports"], cwd=tmp_path, capture_output=True, text=True, check=False, env=_path())
    assert done.returncode != 0
    assert "tasks" in done.stdout


def test_files_keep_their_budget():
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / "src").rglob("*.py")}
    assert len(lengths) > 50
    assert {str(path): lines for path, lines in lengths.items() if lines > BUDGET} == {}


def test_importing_is_free():
    script = (
        "import sys, time; start = time.perf_counter(); import davit; spent = time.perf_counter() - start;"
        "heavy = {'torch', 'numpy', 'PIL', 'timm', 'tyro'} & set(sys.modules); print(heavy or '', spent)"
    )
    times = []
    for _ in range(5):
        done = python("-c", script)
        assert done.stdout.split()[:-1] == [], done.stdout
        times.append(float(done.stdout.split()[-1]))
    assert min(times) < 0.1


def test_help_is_quick():
    assert fastest("-m", "davit", "--help") < 0.5
    for verb in VERBS:
        done = python("-X", "importtime", "-m", "davit", verb, "--help")
        assert done.returncode == 0
        assert f"usage: davit {verb}" in done.stdout
        assert "| torch\n" not in done.stderr, f"davit {verb} --help imports torch"


def test_predicting_classes_needs_no_torchvision():
    """It imports as much as torch itself, and would double the time to the first answer."""
    script = "import sys, davit.inference.predictor; print('torchvision' in sys.modules)"
    assert python("-c", script).stdout.split() == ["False"]


def test_nothing_touches_cuda():
    script = (
        "import davit, torch; davit.create_model('davit_pico'); import davit.train.run, davit.inference.predictor;"
        "print(torch.cuda.is_initialized())"
    )
    assert python("-c", script).stdout.split() == ["False"]


def test_public_names_exist_and_others_say_so():
    import davit

    for name in davit.__all__:
        assert getattr(davit, name) is not None
    assert set(davit.__all__) <= set(dir(davit))
    with pytest.raises(AttributeError, match="no attribute 'train_everything'"):
        davit.train_everything  # noqa: B018


@pytest.mark.parametrize(
    "arguments", [["fly"], ["train", "digit"], ["train", "digits", "optimizer.rate=1"], ["predict"]]
)
def test_wrong_usage_ends_with_2_and_no_stack_trace(arguments):
    done = python("-m", "davit", *arguments)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_built_wheel_runs_the_demo_elsewhere(tmp_path):
    """The wheel alone, in an environment that sees the same libraries but not this checkout."""
    built = python("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist"), cwd=ROOT)
    assert built.returncode == 0, built.stderr
    wheel = next((tmp_path / "dist").glob("davit-*.whl"))
    venv.create(tmp_path / "env", with_pip=True)
    interpreter = tmp_path / "env" / "bin" / "python"
    install = [interpreter, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    libraries = Path(sys.executable).parent.parent / "lib" / site.parent.name / "site-packages"
    (site / "libraries.pth").write_text(f"{libraries}\n")  # a folder named so has its own .pth files ignored
    command = [tmp_path / "env" / "bin" / "davit", "demo", "--out", tmp_path / "out", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics["top1"] >= 0.98
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "<html" in (tmp_path / "out" / "report.html").read_text()
    where = subprocess.run(
        [interpreter, "-c", "import davit; print(davit.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(site) in where.stdout
