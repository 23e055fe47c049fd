"""Does our training lose anything? The same recipe, data and trainer with our model and with timm's of equal size.

    python benchmarks/against_timm_training.py DIR [--epochs 5] [--seeds 0 1] [--out FILE]

DIR holds train/ and val/ with class folders. Only the model differs: timm's DaViT of the same widths, depths and window
with timm's own initialisation and drop-path schedule. Writes top-1 and images/s of each seed as JSON.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import timm
import torch
from torch import nn

from davit.models.config import DaViTConfig
from davit.recipes import make_recipe
from davit.records import assign
from davit.seeding import seed_everything
from davit.tasks.classification import ClassificationTask
from davit.train.build import Images, build_images, build_model
from davit.train.recipe import Recipe
from davit.train.run import make_plan
from davit.train.trainer import Trainer
from record import write_record

SETTINGS = {
    "model.backbone.window": "4",
    "model.backbone.drop_path": "0.05",
    "data.image_size": "32",
    "data.crop": "1.0",
    "data.workers": "0",
    "data.augmentation.crop_scale": "0.6,1.0",
    "data.augmentation.erasing": "0",
    "data.augmentation.rand_augment": "",
    "task.mix_probability": "0",
    "optimizer.layer_decay": "1",
    "optimizer.learning_rate": "0.002",
    "schedule.warmup_epochs": "1",
    "runtime.ema": "0.995",
}


def timm_model(config: DaViTConfig, classes: int) -> nn.Module:
    """Build timm's DaViT of the same architecture."""
    heads = tuple(width // config.head_width for width in config.widths)
    return timm.models.davit.DaVit(
        in_chans=config.in_channels,
        depths=config.depths,
        embed_dims=config.widths,
        num_heads=heads,
        window_size=config.window,
        drop_path_rate=config.drop_path,
        num_classes=classes,
    )


def score(recipe: Recipe, images: Images, *, with_timm: bool) -> dict[str, float]:
    """Train once and return the final scores and the speed."""
    classes = images.train.classes
    ours = build_model(recipe, classes)
    model: nn.Module = ours
    if with_timm:
        seed_everything(recipe.runtime.seed, 2)
        model = timm_model(recipe.model.backbone, len(classes))
        assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in ours.parameters())
    task = ClassificationTask(recipe.task, len(classes))
    plan = replace(make_plan(recipe, ours, task, images), save_model=lambda *_: None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(recipe, model, task, plan, Path(folder))
        history = trainer.run()
    last = next(record for record in reversed(history) if "top1" in record)
    speeds = sorted(record["images_per_second"] for record in history if "loss" in record)
    return {
        "top1": last["top1"],
        "validation_loss": last["validation_loss"],
        "seconds": trainer.progress["seconds"],
        "images_per_second": speeds[len(speeds) // 2],
    }


def main() -> None:
    """Train each model with each seed, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--variant", default="davit_pico")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    recipe = make_recipe("finetune", options.variant)
    for path, text in SETTINGS.items():
        recipe = assign(recipe, path, text)
    recipe = assign(assign(recipe, "data.root", options.root), "schedule.epochs", str(options.epochs))
    images = build_images(recipe.data, 0)
    results: dict[str, list[dict[str, float]]] = {"davit": [], "timm": []}
    for seed in options.seeds:
        seeded = assign(recipe, "runtime.seed", str(seed))
        for name, found in results.items():
            found.append(score(seeded, images, with_timm=name == "timm"))
            print(name, seed, found[-1], file=sys.stderr, flush=True)
    report = {
        "data": Path(options.root).name,
        "epochs": options.epochs,
        "seeds": options.seeds,
        "settings": SETTINGS,
        "variant": options.variant,
        "timm": timm.__version__,
        "results": results,
    }
    write_record(report, options.out, show=True)


if __name__ == "__main__":
    torch.set_num_threads(torch.get_num_threads())
    main()
