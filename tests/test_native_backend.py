"""The native engine in the place of models: predictions, detectors, segmenters, and what happens without a compiler."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from davit.inference.backends.choosing import make_backend
from davit.inference.backends.native import backend, build, engine
from davit.inference.backends.native.backend import NativeBackend
from davit.inference.backends.native.build import NativeError
from davit.inference.parity import compare
from davit.inference.predictor import Predictor
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.davit import DaViT
from davit.models.segmenter_config import SegmenterConfig
from davit.models.upernet import Segmenter
from davit.preprocessing import Preprocessing
from small_detectors import KINDS, talkative


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """For PyTorch, whose threads wait for each other on a busy machine; the engine's are given where they matter."""
    torch.set_num_threads(1)


SMALL = DaViTConfig(widths=(32, 64, 96, 128), depths=(1, 1, 1, 1))


def classifier() -> Classifier:
    model = Classifier(ClassifierConfig(backbone=SMALL, num_classes=4)).eval()
    torch.nn.init.normal_(model.head.weight)
    model.preprocessing = Preprocessing.imagenet(64)
    model.classes = ("cat", "dog", "fish", "bird")
    return model


def test_predictions_are_the_models_own(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (50, 70, 3)).astype(np.uint8)).save(tmp_path / "a.png")
    model = classifier()
    native, eager = (Predictor(made)(tmp_path / "a.png")[0] for made in (NativeBackend(model), model))
    assert native.labels == eager.labels
    assert native.scores == pytest.approx(eager.scores, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_detectors_find_the_same(kind):
    model = talkative(kind)
    model.preprocessing = Preprocessing(size=(64, 96))
    parity = compare(model, NativeBackend(model), "native")
    assert parity.failures == []
    assert parity.objects
    assert isinstance(model.backbone, DaViT)


def test_segmenters_give_the_same_maps():
    model = Segmenter(SegmenterConfig(backbone=SMALL, num_classes=3)).eval()
    model.preprocessing = Preprocessing(size=(64, 96))
    assert compare(model, NativeBackend(model, threads=1), "native").failures == []
    assert isinstance(model.backbone, DaViT)


def test_models_that_it_has_no_part_in_are_refused():
    model = classifier()
    with pytest.raises(ValueError, match="preprocessing"):
        NativeBackend(Classifier(model.config))
    lone = DaViT(SMALL)
    lone.preprocessing = model.preprocessing
    with pytest.raises(ValueError, match="no classifier, detector or segmenter"):
        NativeBackend(lone)


def test_without_a_compiler_pytorch_computes_after_a_warning(monkeypatch):
    build.load_library.cache_clear()
    engine._checked_library.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    model = classifier()
    with pytest.raises(NativeError, match=r"no C\+\+ compiler here .*no-such-compiler.*install g\+\+"):
        NativeBackend(model)
    with pytest.warns(UserWarning, match="install g.*Computing with PyTorch instead"):
        make_backend(model, "auto", "cpu")
    monkeypatch.undo()
    NativeBackend(model)


def test_an_engine_that_computes_something_else_is_not_used(monkeypatch):
    engine._checked_library.cache_clear()
    coded = engine.with_codes

    def wrong(weights, layers, kind):
        made = coded(weights, layers)
        tensors = {name: tensor.flip(0) if kind in name else tensor for name, tensor in made.tensors.items()}
        return replace(made, tensors=tensors)

    for kind in ("mlp.fc1.weight", "mlp.fc1.codes"):
        monkeypatch.setattr(engine, "with_codes", functools.partial(wrong, kind=kind))
        with pytest.raises(NativeError, match=r"computes something else than the model .*eager backend"):
            NativeBackend(classifier())
        monkeypatch.undo()
    engine._checked_library.cache_clear()
    backend.NativeEngine(classifier())


def test_a_failing_compiler_is_quoted_and_leaves_nothing(tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'unknown option -march=native' >&2\nexit 3\n")
    compiler.chmod(0o755)
    target = tmp_path / "cache" / "engine.so"
    with pytest.raises(NativeError, match=r"CXX.*unknown option -march=native"):
        build.compile_library(build.SOURCE / "engine.cpp", target, [str(compiler)])
    assert list(target.parent.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NativeError, match="XDG_CACHE_HOME"):
        build.compile_library(build.SOURCE / "engine.cpp", tmp_path / "file" / "engine.so", ["true"])


@pytest.mark.slow
def test_two_processes_compile_at_once_and_a_third_finds_it_ready(tmp_path):
    """With a compiler that counts its runs: it waits, then takes the real one without optimisation."""
    real = build.find_compiler()
    compiler, runs = tmp_path / "g++", tmp_path / "runs"
    runs.mkdir()
    script = ['[ "$1" = --version ] || { touch "$RUNS/$$"; sleep 1; set -- "$@" -O0; }', 'exec "$REAL" "$@"']
    compiler.write_text("\n".join(["#!/bin/sh", *script, ""]))
    compiler.chmod(0o755)
    own = {"CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path / "cache"), "RUNS": str(runs), "REAL": real[0]}
    code = (
        "import torch; from davit.inference.backends.native.engine import NativeEngine; import davit;"
        "print(NativeEngine(davit.create_model('davit_pico'), 1)(torch.ones(1, 3, 32, 32)).sum().isfinite().item())"
    )

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=os.environ | own, stdout=pipe, stderr=pipe, text=True)

    first = [start(), start()]
    for process in first:
        out, error = process.communicate(timeout=300)
        assert out.split() == ["True"], error
        assert error.count("compiling the native engine") == 1
    compiled = len(list(runs.iterdir()))
    assert compiled == 2
    out, error = start().communicate(timeout=300)
    assert out.split() == ["True"], error
    assert "compiling" not in error
    assert len(list(runs.iterdir())) == compiled
    names = [path.name for path in (tmp_path / "cache" / "davit" / "native").iterdir()]
    assert len(names) == 1
    assert names[0].startswith("engine-")


def test_the_wheel_takes_the_sources_along():
    """Whatever lies in the package folder goes in; here only that the engine lies there, and nothing that was made."""
    root = Path(build.__file__).parent
    found = {path.suffix for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert found == {".py", ".hpp", ".cpp"}
    lengths = {path.name: len(path.read_text().splitlines()) for path in (root / "source").iterdir()}
    assert {name: lines for name, lines in lengths.items() if lines > 300} == {}
    assert json.dumps(sorted(lengths))
