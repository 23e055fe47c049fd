"""What tests/test_distributed.py starts under torchrun: scenarios in, what each process saw out."""

import hashlib
import json
import math
import os
import signal
import sys
from pathlib import Path

import torch

from davit.train.checkpoint import latest_point
from davit.train.distributed import World, joined
from davit.train.parallel import whole
from davit.train.stop import TrainingStoppedError
from runs import make_trainer, tiny_dense_recipe, tiny_recipe

STEPS = 20


def digest(trainer) -> str:
    """Hash of all weights, averages and moments, whole."""
    total = hashlib.sha256()
    for name, tensor in sorted(trainer.stepper.tensors().items()):
        total.update(name.encode() + whole(tensor).contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def play(scenario: dict, world: World, folder: Path) -> dict:
    """Train; note every step's mean loss, the samples, and what was left at the end."""
    named, settings = scenario.get("recipe"), scenario["settings"]
    recipe = tiny_dense_recipe(named, **settings) if named else tiny_recipe(**settings)
    trainer = make_trainer(recipe, folder, world)
    trainer.total = scenario.get("steps", STEPS)
    scores = trainer.evaluate()[0] if named else {}
    losses, ids, add, gradients = [], [], trainer.window.__class__.add, trainer.stepper.gradients

    def noted(window, loss, images):
        losses.append(loss)
        add(window, loss, images)

    def watched(batches, step, rate, **rest):
        if step == scenario.get("stop_before") and world.rank == scenario.get("rank", 0):
            os.kill(os.getpid(), signal.SIGTERM)
        loss, finite = gradients((ids.append(b.ids) or b for b in batches), step, rate, **rest)
        if step in scenario.get("poison", ()) and world.rank == scenario.get("rank", 0):
            loss, finite = math.nan, False
        return loss, finite

    if point := latest_point(folder, world):
        trainer.resume(point)
    trainer.window.__class__.add, trainer.stepper.gradients = noted, watched
    stopped = None
    try:
        trainer.run()
    except TrainingStoppedError as error:
        stopped = str(error)
    finally:
        trainer.window.__class__.add = add
    return {
        "losses": losses, "ids": ids, "digest": digest(trainer), "stopped": stopped,
        "scores": scores, "skipped": trainer.progress["skipped"], "best": trainer.progress["best"],
        "shards": [list(t.to_local().shape) for t in trainer.stepper.tensors().values() if hasattr(t, "to_local")][:1],
    }  # fmt: skip


def main(out: Path, scenarios: list[dict]) -> None:
    """Play all scenarios in this process and its siblings."""
    torch.set_num_threads(1)
    seen = {}
    with joined(tiny_recipe(runtime__parallel="fsdp").runtime) as world:
        for scenario in scenarios:
            seen[scenario["name"]] = play(scenario, world, out / scenario["folder"])
    (out / f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
