"""How gently fine-tuning should treat weights that were learned before: digits 0-4 first, then 5-9 from few examples.

    python benchmarks/finetune_defaults.py [--epochs 30] [--images 20] [--rate 2e-3] [--seeds 0 1 2] [--out FILE]

Trains `davit_pico` on the digits 0-4, then `finetune` on `--images` training pictures of each of 5-9, with every layer
decay and length of freezing in turn, from those weights and from fresh ones; all of a seed before the next seed. Prints
test top-1 and loss on the digits 5-9; CPU, a few seconds a run.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path

from davit.cli.train import recipe_with
from davit.data.digits import Digits
from davit.train.recipe import Recipe
from davit.train.run import environment, run

CASES = {
    "fresh weights": ("", 1.0, 0.0),
    "neither": ("init", 1.0, 0.0),
    "layer decay 0.8": ("init", 0.8, 0.0),
    "frozen for 1 epoch": ("init", 1.0, 1.0),
    "frozen for 3 epochs": ("init", 1.0, 3.0),
    "0.8, frozen for 1 epoch": ("init", 0.8, 1.0),
    "0.8, frozen for 3 epochs": ("init", 0.8, 3.0),
}
SMALL = (
    "model.variant=davit_pico",
    "model.backbone.in_channels=1",
    "model.backbone.window=3",
    "model.backbone.drop_path=0.05",
    "data.channels=1",
    "data.image_size=24",
    "data.crop=1.0",
    "data.workers=0",
    "data.batch_size=16",
    "data.augmentation.crop_scale=0.7,1.0",
    "data.augmentation.flip=0",
    "data.augmentation.rand_augment=",
    "data.augmentation.erasing=0",
    "task.mix_probability=0",
    "runtime.ema=0.9",
    "runtime.evaluate_every=1000",
)


def write_digits(root: Path, digits: range, images: int | None) -> None:
    """Write class folders of some digits: `images` training pictures of each, all test pictures."""
    for part, folder in (("train", "train"), ("test", "val")):
        source = Digits(part)
        kept = dict.fromkeys(digits, 0)
        for index in range(len(source)):
            picture, label = source[index]
            if label in kept and (part == "test" or images is None or kept[label] < images):
                kept[label] += 1
                (root / folder / str(label)).mkdir(parents=True, exist_ok=True)
                picture.save(root / folder / str(label) / f"{index}.png")


def quietly(recipe: Recipe, folder: Path) -> dict[str, float]:
    """Run, and return the scores."""
    with contextlib.redirect_stderr(io.StringIO()):
        result = run(recipe, folder)
    assert result is not None
    return {key: result.metrics[key] for key in ("top1", "validation_loss")}


def main() -> None:
    """Run all cases for all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_digits(root / "low", range(5), None)
        write_digits(root / "high", range(5, 10), options.images)
        for seed in options.seeds:
            first = (f"data.root={root / 'low'}", "data.batch_size=64", "optimizer.learning_rate=0.004")
            shared = (*SMALL, f"runtime.seed={seed}", "schedule.warmup_epochs=2")
            low = root / f"low-{seed}"
            print(
                f"seed {seed}, digits 0-4:",
                quietly(recipe_with("finetune", (*shared, *first, "schedule.epochs=12")), low),
            )
            for case, (start, decay, frozen) in CASES.items():
                settings = (
                    *shared,
                    f"data.root={root / 'high'}",
                    f"schedule.epochs={options.epochs}",
                    f"model.init={low / 'model.safetensors' if start else ''}",
                    f"optimizer.learning_rate={options.rate}",
                    f"optimizer.layer_decay={decay}",
                    f"optimizer.frozen_epochs={frozen}",
                )
                found[case].append(quietly(recipe_with("finetune", settings), root / f"{seed}-{case}"))
                print(f"seed {seed}, {case}:", found[case][-1], flush=True)
    for case, scores in found.items():
        top1 = [score["top1"] for score in scores]
        loss = [score["validation_loss"] for score in scores]
        print(f"{case:<22} top-1 {statistics.mean(top1):.3f} ({min(top1):.3f} to {max(top1):.3f})", end="  ")
        print(f"loss {statistics.mean(loss):.3f} ({min(loss):.3f} to {max(loss):.3f})")
    if options.out:
        record = {"environment": environment(), "options": vars(options) | {"out": None}, "found": found}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
