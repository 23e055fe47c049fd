"""A run that is stopped, or loses a process, ends cleanly everywhere and goes on to the bit."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

import davit.data.loader as loader_module
from davit.train.checkpoint import latest_point
from davit.weights.load import load
from kills import kill_often
from runs import make_trainer, states_equal, tiny_recipe, weights_of
from stops import PHASES, SETTINGS, stop_and_resume, train_on_two


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Executor]:
    """A process that has not computed yet: one that has must not fork, for the threads of its kernels stay behind."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.mark.slow
def test_twenty_kills_lose_nothing(tmp_path):
    """benchmarks/interruptions.py does it 200 times."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        recipe = tiny_recipe(runtime__save_minutes="0")
        report = executor.submit(kill_often, recipe, tmp_path, kills=20, seed=1).result(timeout=1200)
    assert report.kills == 20
    assert report.kills_in_a_save >= 5
    assert report.unusable == report.lost_checkpoints == report.leftovers == 0
    assert report.most_steps_lost <= 1
    assert report.equal_to_an_uninterrupted_run
    assert report.equal_log


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, elsewhere) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert elsewhere.submit(train_on_two, folder).result(timeout=120).codes == (0, 0)
    return load(folder / "run" / "model.safetensors").state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_to_one_of_two_saves_and_ends_both(tmp_path, undisturbed, elsewhere, phase):
    seen = elsewhere.submit(stop_and_resume, tmp_path, phase, random.Random(phase)).result(timeout=120)
    assert seen["codes"] == (143, 143), seen["text"]
    assert seen["seconds"] < 30
    assert seen["points"]
    assert seen["text"].count("run the same command to go on") == 1  # said once, by the first process
    assert seen["codes_again"] == (0, 0)
    assert states_equal(undisturbed, load(tmp_path / "run" / "model.safetensors").state_dict())
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], "loss" in r) for r in records] == [(29, True), (30, True), (30, False)]


@pytest.mark.slow
def test_a_lost_process_ends_the_other_at_once(tmp_path, elsewhere):
    told = {"at": "step", "number": 7, "rank": 1, "signal_": signal.SIGKILL}
    lost = elsewhere.submit(train_on_two, tmp_path, **told).result(timeout=120)
    assert lost.codes == (1, -9), lost.text
    assert lost.seconds < 60
    assert "another process of this run is gone" in lost.text
    assert "Traceback" not in lost.text


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_lost_a_process(tmp_path, undisturbed):
    """The second rank kills itself once; --max-restarts brings both back, and they resume."""
    script = tmp_path / "worker.py"
    script.write_text(f"""
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from davit.cli import main
from davit.train.step import Stepper
gradients, once = Stepper.gradients, Path({str(tmp_path / "once")!r})
def dying(self, batches, step, rate, **rest):
    if step == 9 and os.environ["RANK"] == "1" and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return gradients(self, batches, step, rate, **rest)
Stepper.gradients = dying
sys.exit(main(["train", "digits", *{SETTINGS!r}, "runtime.save_minutes=0", "--out", {str(tmp_path / "run")!r}]))
""")
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "--max-restarts", "3", str(script)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "once").exists()
    assert "going on after step 9 of 30" in done.stderr
    assert time.monotonic() - started < 200
    assert states_equal(undisturbed, load(tmp_path / "run" / "model.safetensors").state_dict())


@pytest.mark.parametrize("fault", ["killed", "hung"])
def test_a_loader_process_that_dies_or_hangs_is_started_again_once(tmp_path, monkeypatch, capfd, fault):
    recipe = tiny_recipe(data__workers="1", schedule__epochs="1", schedule__warmup_epochs="0")
    expected = make_trainer(recipe, tmp_path / "whole")
    expected.run()
    monkeypatch.setattr(loader_module, "WORKER_TIMEOUT", 5)
    trainer = make_trainer(recipe, tmp_path / "run")
    once, samples = tmp_path / "once", loader_module.TrainSamples._sample

    def faulty(self, key, transform):
        if key[1] % 100 == 7 and not once.exists():
            once.touch()
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(3600)
        return samples(self, key, transform)

    monkeypatch.setattr(loader_module.TrainSamples, "_sample", faulty)
    started = time.monotonic()
    history = trainer.run()
    assert time.monotonic() - started < 60
    assert once.exists()
    assert "starting it again" in capfd.readouterr().err
    assert states_equal(weights_of(expected), weights_of(trainer))
    assert [r["step"] for r in history if "loss" in r] == [11, 12]


def test_a_loader_that_keeps_dying_ends_the_run_in_one_line(tmp_path):
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import davit.data.loader as loader
loader.TrainSamples._sample = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from davit.cli import main
sys.exit(main(["train", "digits", "data.workers=1", "--out", {str(tmp_path / "run")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "a loader process died or hung" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert latest_point(tmp_path / "run") is None
