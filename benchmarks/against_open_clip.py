"""Does our image-text training lose anything? Our trainer beside a plain loop with open_clip's text tower and ClipLoss.

    python benchmarks/against_open_clip.py FLICKR [--epochs 20] [--seeds 0 1] [--out FILE]

FLICKR holds images/ and captions.txt (image, caption). Of each picture the first caption is taken, so that every label
is unique, where the unified loss is CLIP's. Both sides have the same image tower, first values, batches, rates and
steps; the other side's text tower, loss and AdamW are open_clip's and PyTorch's own. Writes the losses of each step and
retrieval among the pairs that were learnt as JSON.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from davit.evaluation.retrieval import RetrievalMetric
from davit.models.clip import LARGEST_SCALE, ImageTextModel, ImageTextOutput
from davit.recipes import make_recipe
from davit.records import assign
from davit.structures import Batch
from davit.tasks.contrastive import ContrastiveConfig, ContrastiveTask
from davit.train.build import build_model
from davit.train.optimizer import parameter_groups
from davit.train.recipe import Recipe
from davit.train.run import make_plan
from davit.train.schedule import rate_at
from davit.train.sides import list_images
from davit.train.trainer import Trainer
from record import write_record

SETTINGS = {
    "model.backbone.window": "4",
    "model.backbone.drop_path": "0",
    "model.head.embedding": "128",
    "model.head.text.width": "128",
    "model.head.text.heads": "4",
    "model.head.text.layers": "3",
    "model.head.text.context": "40",
    "data.source": "captions",
    "data.image_size": "64",
    "data.workers": "0",
    "optimizer.learning_rate": "7e-4",
    "optimizer.clip_norm": "1",
    "schedule.warmup_epochs": "1",
    "runtime.ema": "0",
    "runtime.precision": "fp32",
}


@dataclass
class Kept(ContrastiveTask):
    """The task, which remembers the loss of each step."""

    def __post_init__(self) -> None:
        """Begin with none."""
        super().__init__(ContrastiveConfig())
        self.seen: list[float] = []

    def losses(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Return the loss."""
        found = super().losses(model, batch)
        self.seen.append(float(found["loss"].detach()))
        return found


class Theirs(nn.Module):
    """The same image tower beside open_clip's text tower."""

    def __init__(self, ours: ImageTextModel) -> None:
        """Take all first values of ours."""
        super().__init__()
        head = ours.config.head
        text = head.text
        self.backbone, self.norm, self.projection = ours.backbone, ours.norm, ours.projection
        self.text = TextTransformer(
            context_length=text.context, width=text.width, heads=text.heads, layers=text.layers,
            output_dim=head.embedding,
        )  # fmt: skip
        self.text.load_state_dict(ours.text.state_dict(), strict=True)
        self.logit_scale = nn.Parameter(ours.scale.logarithm.detach().squeeze(0).clone())

    def forward(self, images: Tensor, tokens: Tensor) -> ImageTextOutput:
        """Embed both."""
        found = self.projection(self.norm(self.backbone(images)[-1].mean((2, 3))))
        return ImageTextOutput(
            F.normalize(found, dim=-1), F.normalize(self.text(tokens), dim=-1), self.logit_scale.exp()
        )


def pairs(flickr: Path, folder: Path) -> None:
    """The first caption of each picture, to learn from and to be scored on."""
    first: dict[str, str] = {}
    with (flickr / "captions.txt").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            first.setdefault(row["image"], row["caption"].strip())
    for part in ("train", "val"):
        (folder / part).mkdir(parents=True)
        (folder / part / "images").symlink_to((flickr / "images").absolute())
        with (folder / part / "captions.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("image", "caption"), *first.items()])


def ours(recipe: Recipe) -> tuple[list[float], dict[str, float]]:
    """Train by our trainer; losses and scores."""
    images = list_images(recipe)
    model, task = build_model(recipe, ()), Kept()
    plan = replace(make_plan(recipe, model, task, images), save_model=lambda *_: None)
    with tempfile.TemporaryDirectory() as folder:
        history = Trainer(recipe, model, task, plan, Path(folder)).run()
    return task.seen, next(record for record in reversed(history) if "image_to_text_r1" in record)


def theirs(recipe: Recipe) -> tuple[list[float], dict[str, float]]:
    """Train by the plain loop; losses and scores."""
    images = list_images(recipe)
    built = build_model(recipe, ())
    assert isinstance(built, ImageTextModel)
    plan = make_plan(recipe, built, ContrastiveTask(ContrastiveConfig()), images)
    config = recipe.optimizer
    decays = {id(p): group["weight_decay"] for group in parameter_groups(built, config) for p in group["params"]}
    names = {f"{name.replace('scale.logarithm', 'logit_scale')}": id(p) for name, p in built.named_parameters()}
    model = Theirs(built)
    groups = [{"params": [p], "weight_decay": decays[names[name]]} for name, p in model.named_parameters()]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=config.betas, eps=config.eps)
    loss_of, seen = ClipLoss(), list[float]()
    total = recipe.schedule.total_steps(plan.samples, plan.batch_size)
    for step, batch in enumerate(_batches(plan, total)):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate_at(recipe.schedule, step, plan.samples / plan.batch_size)
        out = model.train()(batch.images, batch.texts)
        loss = loss_of(out.images, out.texts, out.scale)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, LARGEST_SCALE)
        seen.append(float(loss.detach()))
    metric = RetrievalMetric()
    with torch.no_grad():
        for batch in plan.validation():
            metric.update(model.eval()(batch.images, batch.texts), batch.targets)
    return seen, metric.compute()


def _batches(plan: Any, total: int) -> Iterator[Batch]:
    yield from plan.batches(range(total))


def main() -> None:
    """Train both with each seed, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flickr", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--variant", default="davit_pico")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        pairs(options.flickr, Path(folder) / "pairs")
        recipe = make_recipe("image_text.unicl", options.variant)
        given = {"data.root": str(Path(folder) / "pairs"), "schedule.epochs": str(options.epochs)}
        for path, text in (SETTINGS | given | {"data.batch_size": str(options.batch_size)}).items():
            recipe = assign(recipe, path, text)
        for seed in options.seeds:
            seeded = assign(recipe, "runtime.seed", str(seed))
            (mine, scores), (peer, their_scores) = ours(seeded), theirs(seeded)
            differences = [abs(a - b) for a, b in zip(mine, peer, strict=True)]
            found = {
                "seed": seed,
                "steps": len(mine),
                "largest_difference_in_20_steps": max(differences[:20]),
                "largest_difference": max(differences),
                "davit": {"first": mine[0], "last": mine[-1], **_retrieval(scores)},
                "open_clip": {"first": peer[0], "last": peer[-1], **_retrieval(their_scores)},
                "losses": {"davit": [round(v, 5) for v in mine], "open_clip": [round(v, 5) for v in peer]},
            }
            results.append(found)
            print({key: value for key, value in found.items() if key != "losses"}, file=sys.stderr, flush=True)
    report = {
        "data": options.flickr.name, "epochs": options.epochs, "batch_size": options.batch_size,
        "settings": SETTINGS, "variant": options.variant, "open_clip": open_clip.__version__, "results": results,
    }  # fmt: skip
    write_record(report, options.out)


def _retrieval(scores: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in scores.items() if "_r" in key and "to" in key}


if __name__ == "__main__":
    main()
