"""What detection and segmentation reach on a few real pictures, from fresh weights.

    python benchmarks/small_dense_data.py overfit COCO_DIR --folder DIR [--out FILE] [key=value ...]
    python benchmarks/small_dense_data.py segment MASKS_DIR --classes FILE [--ignore 11] [--out FILE] [key=value ...]

`overfit`: Mask R-CNN learns the training pictures of a COCO folder by heart, and is scored on the same pictures: what a
detector cannot do there, it can do nowhere. DIR keeps the run and, in DIR/coco, what it is scored on; torchrun makes it
several processes. `segment`: UPerNet on a folder of pictures and index masks, once on our backbone and once on timm's
DaViT of equal size and equal first weights; only the backbone's code differs. Settings of the recipe may be given as
for `davit train`. Writes the scores of each evaluation and the time as JSON.
"""

import argparse
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from davit.models.config import DaViTConfig
from davit.recipes import make_recipe
from davit.records import assign_all
from davit.train.build import build_model
from davit.train.recipe import Recipe
from davit.train.run import make_plan, run
from davit.train.sides import first_values, list_images, make_task
from davit.train.trainer import Trainer
from davit.weights.convert.timm import TIMM
from record import write_record

OVERFIT = {
    "model.backbone.drop_path": "0",
    "model.head.channels": "64",
    "model.head.hidden": "512",
    "model.head.anchor_scale": "4",
    "model.head.class_agnostic_boxes": "true",
    "model.head.region_samples": "64",
    "model.head.training_candidates": "500",
    "model.head.candidates": "500",
    "model.head.proposals": "300",
    "data.image_size": "256",
    "data.longest": "416",
    "data.batch_size": "2",
    "data.workers": "0",
    "data.augmentation.short_sides": "256",
    "data.augmentation.longest": "416",
    "data.augmentation.crop_probability": "0",
    "data.augmentation.crop_short_sides": "256",
    "data.augmentation.flip": "0",
    "optimizer.kind": "muon",
    "optimizer.learning_rate": "2e-3",
    "optimizer.matrix_rate": "2",
    "optimizer.matrix_precision": "auto",
    "optimizer.decay_all": "false",
    "optimizer.weight_decay": "0",
    "optimizer.clip_norm": "1",
    "schedule.shape": "cosine",
    "schedule.drops": "",
    "schedule.warmup_steps": "100",
    "schedule.epochs": "36",
    "runtime.ema": "0.99",
    "runtime.evaluate_every": "9",
}
SEGMENT = {
    "model.backbone.drop_path": "0",
    "model.head.channels": "96",
    "model.head.auxiliary_channels": "48",
    "task.prior_samples": "50",
    "data.image_size": "192",
    "data.longest": "256",
    "data.batch_size": "4",
    "data.workers": "0",
    "data.augmentation.short": "192",
    "data.augmentation.longest": "256",
    "data.augmentation.crop": "160",
    "optimizer.learning_rate": "2e-3",
    "optimizer.weight_decay": "0.05",
    "optimizer.decay_all": "false",
    "optimizer.clip_norm": "1",
    "schedule.shape": "cosine",
    "schedule.steps": "0",
    "schedule.warmup_steps": "50",
    "schedule.epochs": "80",
    "runtime.ema": "0.99",
    "runtime.evaluate_every": "20",
}


class TimmMaps(nn.Module):
    """timm's DaViT as a backbone that gives the maps of its four stages."""

    def __init__(self, config: DaViTConfig) -> None:
        """Build with timm's own initialisation."""
        super().__init__()
        self.model = timm.models.davit.DaVit(
            in_chans=config.in_channels,
            depths=config.depths,
            embed_dims=config.widths,
            num_heads=tuple(width // config.head_width for width in config.widths),
            window_size=config.window,
            drop_path_rate=config.drop_path,
            num_classes=0,
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return four maps (B, C, H, W)."""
        x, maps = self.model.stem(images), []
        for stage in self.model.stages:
            x = stage(x)
            maps.append(x)
        return maps


def learn(recipe: Recipe, *, with_timm: bool = False) -> dict[str, Any]:
    """Train once; return the curve of scores, the first and last loss, and the time."""
    images = list_images(recipe)
    model = build_model(recipe, images.train.classes, first=first_values(recipe, images))
    task = make_task(recipe, images)
    plan = replace(make_plan(recipe, model, task, images), save_model=lambda *_: None)
    if with_timm:
        backbone = TimmMaps(model.config.backbone)
        given = TIMM.from_ours({f"backbone.{name}": tensor for name, tensor in model.backbone.state_dict().items()})
        wanted = backbone.model.state_dict()
        backbone.model.load_state_dict(
            {name: given[name] for name in wanted if not name.startswith("head.")}, strict=False
        )
        model.backbone = backbone
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(recipe, model, task, plan, Path(folder))
        history = trainer.run()
    losses = [record["loss"] for record in history if "loss" in record]
    speeds = sorted(record["images_per_second"] for record in history if "loss" in record)
    return {
        "scores": [record for record in history if "box_ap" in record or "miou" in record],
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "seconds": trainer.progress["seconds"],
        "images_per_second": speeds[len(speeds) // 2],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def on_training_pictures(root: Path, folder: Path) -> Path:
    """Lay out a COCO folder whose validation part is the training part of `root`."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    annotations = root / "annotations" / "instances_train2017.json"
    for part in ("train2017", "val2017"):
        links = {folder / part: root / "train2017", folder / "annotations" / f"instances_{part}.json": annotations}
        for link, target in links.items():
            with suppress(FileExistsError):  # several processes do it
                link.symlink_to(target.resolve())
    return folder


def by_heart(recipe: Recipe, folder: Path) -> dict[str, Any] | None:
    """Train and score on the same pictures; None on all processes but the first."""
    done = run(recipe, folder)
    if done is None:
        return None
    scores = [record for record in done.history if "box_ap" in record]
    return {"scores": scores, "final": done.metrics}


def settings_of(given: list[str], defaults: dict[str, str]) -> dict[str, str]:
    """The defaults with what the command line changes."""
    return defaults | dict(setting.split("=", 1) for setting in given)


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overfit", "segment"))
    parser.add_argument("root", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--variant", default="davit_pico")
    parser.add_argument("--classes", help="file with a class name a line, for masks")
    parser.add_argument("--ignore", default="", help="labels that mean no class, for masks")
    parser.add_argument("--folder", type=Path, help="of the run, for overfit")
    parser.add_argument("--out", type=Path)
    options = parser.parse_intermixed_args()
    overfit = options.what == "overfit"
    settings = settings_of(options.settings, OVERFIT if overfit else SEGMENT)
    name = "coco.mask_rcnn_1x" if overfit else "ade20k.upernet"
    places = {"data.root": str(options.root)}
    if overfit:
        if options.folder is None:
            parser.error("overfit takes --folder DIR, which keeps the run")
        places["data.root"] = str(on_training_pictures(options.root, options.folder / "coco"))
    else:
        places |= {"data.class_list": options.classes or "", "data.ignore": options.ignore}
    recipe = assign_all(make_recipe(name, options.variant, init=""), settings | places)
    if overfit:
        found = by_heart(recipe, options.folder / "run")
        if found is None:
            return
        results: dict[str, Any] = {"davit": found}
    else:
        results = {"davit": learn(recipe), "timm": learn(recipe, with_timm=True)}
    report = {
        "data": options.root.name,
        "variant": options.variant,
        "recipe": name,
        "settings": settings,
        "timm": timm.__version__,
        "threads": torch.get_num_threads(),
        "results": results,
    }
    write_record(report, options.out, show=True)
    for kind, found in results.items():
        print(kind, found["scores"][-1], file=sys.stderr)


if __name__ == "__main__":
    main()
