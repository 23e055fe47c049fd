"""Several processes: the same run as one, to the rounding; the same resume, to the bit; one fate for all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "distributed_worker.py"
MIXED = {"data.batch_size": "48", "task.mixup": "0.8", "task.cutmix": "1.0", "runtime.evaluate_every": "1"}


def launch(folder: Path, processes: int, scenarios: list[dict]) -> list[dict]:
    """Play scenarios on so many processes; return what each saw."""
    folder.mkdir(parents=True, exist_ok=True)
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*start, str(WORKER), str(folder), json.dumps(scenarios)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


def scenario(name: str, folder: str | None = None, **rest) -> dict:
    settings = MIXED | {key.replace("__", "."): value for key, value in rest.items() if "__" in key}
    others = {key: value for key, value in rest.items() if "__" not in key}
    return {"name": name, "folder": folder or name, "settings": settings} | others


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    scenarios = [
        scenario("plain"),
        scenario("parts", runtime__accumulate="3"),
        scenario("muon", optimizer__kind="muon"),
    ]
    return launch(tmp_path_factory.mktemp("alone"), 1, scenarios)[0]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("two")
    fsdp = {"runtime__parallel": "fsdp"}
    scenarios = [
        scenario("ddp"),
        scenario("ddp-parts", runtime__accumulate="2"),
        scenario("fsdp", **fsdp),
        scenario("fsdp-parts", runtime__accumulate="4", data__workers="1", **fsdp),
        scenario("ddp-first", "ddp-again", stop_before=9, rank=1, runtime__accumulate="2"),
        scenario("ddp-second", "ddp-again", runtime__accumulate="2"),
        scenario("fsdp-first", "fsdp-again", stop_before=9, rank=0, **fsdp),
        scenario("fsdp-second", "fsdp-again", **fsdp),
        scenario("fsdp-third", "fsdp-other", stop_before=9, rank=1, **fsdp),
        scenario("poisoned", poison=[5, 6], rank=1),
        scenario("poisoned-fsdp", poison=[5, 6], rank=0, **fsdp),
        scenario("ddp-evaluated", data__batch_size="144"),
        scenario("fsdp-evaluated", data__batch_size="144", **fsdp),
        scenario("fsdp-bf16", runtime__precision="bf16", **fsdp),
        scenario("ddp-bf16", runtime__precision="bf16"),
        scenario("fsdp-recomputed", model__backbone__gradient_checkpointing="true", **fsdp),
        scenario("muon-ddp", optimizer__kind="muon"),
        scenario("muon-fsdp", optimizer__kind="muon", **fsdp),
        scenario("muon-first", "muon-again", stop_before=9, rank=1, optimizer__kind="muon", **fsdp),
        scenario("muon-second", "muon-again", optimizer__kind="muon", **fsdp),
        scenario("frozen", optimizer__frozen_epochs="0.2"),
        scenario("frozen-fsdp", optimizer__frozen_epochs="0.2", **fsdp),
    ]
    return folder, launch(folder, 2, scenarios)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "ddp-parts", "fsdp", "fsdp-parts", "fsdp-recomputed"])
def test_processes_and_micro_batches_change_nothing_but_rounding(alone, two, name):
    """Mixup, cutmix, drop path and clipping are on; 20 steps."""
    for seen in two[1]:
        assert seen[name]["losses"] == pytest.approx(alone["plain"]["losses"], rel=1e-6)
    assert alone["parts"]["losses"] == pytest.approx(alone["plain"]["losses"], rel=1e-6)
    shares = [[tuple(b) for b in seen[name]["ids"]] for seen in two[1]]
    parts = len(shares[0]) // 20
    for step, batch in enumerate(alone["plain"]["ids"]):
        ids = [i for share in shares for part in share[step * parts : (step + 1) * parts] for i in part]
        assert ids == batch  # the same samples in the same order, whoever computes them


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_resume_on_two_processes_is_exact(two, kind):
    whole = "ddp-parts" if kind == "ddp" else "fsdp"
    for seen in two[1]:
        assert "stopped after step 10 of 20" in seen[f"{kind}-first"]["stopped"]  # on both, one had the signal
        assert seen[f"{kind}-first"]["losses"] + seen[f"{kind}-second"]["losses"] == seen[whole]["losses"]
        assert seen[f"{kind}-second"]["digest"] == seen[whole]["digest"]
        assert seen[f"{kind}-second"]["best"] == seen[whole]["best"]


@pytest.mark.slow
def test_muon_is_the_same_on_two_processes_and_sharded(alone, two):
    for seen in two[1]:
        for name in ("muon-ddp", "muon-fsdp"):
            assert seen[name]["losses"] == pytest.approx(alone["muon"]["losses"], rel=1e-5)
        assert seen["muon-first"]["losses"] + seen["muon-second"]["losses"] == seen["muon-fsdp"]["losses"]
        assert seen["muon-second"]["digest"] == seen["muon-fsdp"]["digest"]
    assert alone["muon"]["losses"][-1] != pytest.approx(alone["plain"]["losses"][-1], rel=1e-3)


@pytest.mark.slow
def test_shards_of_two_processes_resume_on_one(two):
    folder, seen = two
    assert seen[0]["fsdp"]["shards"] != [] == seen[0]["ddp"]["shards"]
    one = launch(folder, 1, [scenario("one", "fsdp-other"), scenario("one-of-ddp", "ddp-again")])[0]
    assert one["one"]["losses"] == pytest.approx(seen[0]["fsdp"]["losses"][10:], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["poisoned", "poisoned-fsdp"])
def test_a_step_that_is_not_finite_on_one_process_is_skipped_on_all(two, name):
    first, second = (seen[name] for seen in two[1])
    assert first["skipped"] == second["skipped"] == 2
    assert first["digest"] == second["digest"]
    assert first["losses"][:5] == two[1][0][name.replace("poisoned", "ddp").replace("ddp-", "")]["losses"][:5]


@pytest.mark.slow
def test_training_goes_on_alike_after_an_evaluation(two):
    """After epoch 1 of 2, with the averages in the place of the weights."""
    first, second = two[1][0]["ddp-evaluated"], two[1][0]["fsdp-evaluated"]
    assert first["losses"] == pytest.approx(second["losses"], rel=1e-6)
    assert first["best"]["top1"] == second["best"]["top1"]


@pytest.mark.slow
def test_mixed_precision_stays_near(two):
    for kind in ("ddp", "fsdp"):
        assert two[1][0][f"{kind}-bf16"]["losses"] == pytest.approx(two[1][0]["ddp"]["losses"], rel=0.03)
        assert two[1][0][f"{kind}-bf16"]["losses"] != two[1][0]["ddp"]["losses"]


@pytest.mark.slow
def test_no_process_ever_holds_all_weights(tmp_path):
    """Half of davit_large, 751 MiB in fp32, and a module at a time."""
    script = tmp_path / "memory.py"
    script.write_text("""
import resource, sys
from dataclasses import replace
from davit.recipes import make_recipe
from davit.train.build import build_model
from davit.train.distributed import joined
recipe = make_recipe("imagenet.davit_large")
recipe = replace(recipe, runtime=replace(recipe.runtime, parallel="fsdp", precision="fp32"))
small = replace(recipe, model=replace(recipe.model, backbone=make_recipe("imagenet.davit_tiny").model.backbone))
with joined(recipe.runtime) as world:
    build_model(small, ("a", "b"), world)  # what is imported and cached on the way does not count
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = build_model(recipe, tuple(map(str, range(1000))), world)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mine = sum(p.to_local().numel() for p in model.parameters())
    assert abs(mine / sum(p.numel() for p in model.parameters()) - 0.5) < 0.01
    print("grown by", round((after - before) / 1024))
""")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    grown = [int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("grown by")]
    assert len(grown) == 2
    assert max(grown) < 0.7 * 751


@pytest.mark.slow
def test_freezing_is_the_same_sharded(two):
    first, second = two[1][0]["frozen"], two[1][0]["frozen-fsdp"]
    assert first["losses"] == pytest.approx(second["losses"], rel=1e-6)
    assert first["losses"] != two[1][0]["ddp"]["losses"]
