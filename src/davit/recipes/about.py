"""What a recipe says of itself: sources, command, costs with their arithmetic, the score to expect."""

import textwrap
from dataclasses import dataclass
from typing import Any

from davit.models.complexity import count_macs
from davit.train.dry_run import SUSTAINED_TFLOPS
from davit.train.recipe import Recipe

WIDTH = 110


@dataclass(frozen=True, kw_only=True)
class About:
    """What the settings alone do not say.

    Attributes:
        summary: one line.
        source: where the settings come from.
        ours: what no source gives, and where we differ on purpose.
        command: a command that runs it.
        expected: the score to expect, with its source.
        classes: classes of its data set; 0 where that is the user's.
        images: training images of an epoch; 0 where they are the user's.
        macs: multiply-adds of one forward, where the backbone is not all; 0 counts a classifier.
        measured: time that a run was seen to take; empty where it is only estimated.
        rate: how the learning rate follows the images per step; empty where it does not.
        crop: which evaluation crops are published; empty where none is.
    """

    summary: str
    source: str
    ours: str
    command: str
    expected: str
    classes: int = 0
    images: int = 0
    macs: int = 0
    measured: str = ""
    rate: str = ""
    crop: str = ""

    def to_json(self, recipe: Recipe, tflops: float = SUSTAINED_TFLOPS) -> dict[str, Any]:
        """Everything by name, with the costs of `recipe` at `tflops` sustained per device."""
        cost = estimate(recipe, self, tflops)
        return {
            "name": recipe.name,
            "summary": self.summary,
            "source": self.source,
            "ours": self.ours,
            "command": self.command,
            "expected": self.expected,
            "measured": self.measured or None,
            "macs": cost.macs,
            "flops": cost.flops if self.images else None,
            "device_hours": round(cost.hours, 2) if self.images else None,
            "tflops": tflops,
        }

    def lines(self, recipe: Recipe, tflops: float = SUSTAINED_TFLOPS) -> list[str]:
        """The same to read."""
        told = {
            "source": self.source,
            "ours": self.ours,
            "rate": self._rate(recipe),
            "crop": self._crop(recipe),
            "command": self.command,
            "cost": self.measured or estimate(recipe, self, tflops).told(),
            "expected": self.expected,
        }
        paragraphs = (_paragraph(key, text) for key, text in told.items())
        return [f"{recipe.name}: {self.summary}", *(line for paragraph in paragraphs for line in paragraph)]

    def _rate(self, recipe: Recipe) -> str:
        now = f"{recipe.optimizer.learning_rate:g} at the peak, {recipe.data.batch_size} images a step"
        return f"{now} ({self.rate})" if self.rate else now

    def _crop(self, recipe: Recipe) -> str:
        data = recipe.data
        if data.longest:
            return f"evaluation of whole pictures, short side {data.image_size}, long at most {data.longest} pixels"
        now = f"evaluation at crop {data.crop}, {data.interpolation}"
        return f"{now} ({self.crop})" if self.crop else now


@dataclass(frozen=True, kw_only=True)
class Cost:
    """An estimate of a run's arithmetic.

    Attributes:
        macs: multiply-adds of one forward for one image.
        passes: how many forwards a training step is worth.
        images: images of an epoch; 0 where they are the user's.
        epochs: epochs of the run.
        tflops: sustained by one device, in 1e12 floating-point operations a second.
    """

    macs: int
    passes: int
    images: int
    epochs: int
    tflops: float

    @property
    def flops(self) -> float:
        """Floating-point operations of the run, or for each image of the user's."""
        return self.macs * 2.0 * self.passes * (self.images or 1) * self.epochs

    @property
    def hours(self) -> float:
        """Hours on one device, or for each image of the user's."""
        return self.flops / (self.tflops * 1e12) / 3600

    def told(self) -> str:
        """The arithmetic and its outcome; evaluation and waiting for data are left out."""
        product = f"{self.macs / 1e9:.4g} GMACs x 2 x {self.passes} passes"
        assumed = " (an A100 in milabench)" if self.tflops == SUSTAINED_TFLOPS else ""
        rate = f"{self.tflops:g} TFLOP/s a device{assumed}"
        if not self.images:
            hours = f"{10_000 * self.hours:.2g} hours for 10,000 images"
            return f"{product} x {self.epochs} epochs = {self.flops / 1e9:.4g} GFLOP an image; at {rate}, {hours}"
        product += f" x {self.images:,} images x {self.epochs} epochs = {self.flops:.3g} FLOP"
        return f"{product}; at {rate}, {show_hours(self.hours)} on one, {show_hours(self.hours / 8)} on eight"


def estimate(recipe: Recipe, about: About, tflops: float) -> Cost:
    """Count a run: backward is worth two forwards, and checkpointing repeats the forward."""
    size, backbone = recipe.data.image_size, recipe.model.backbone
    return Cost(
        macs=about.macs or count_macs(backbone, size, size, about.classes or None),
        passes=4 if backbone.gradient_checkpointing else 3,
        images=about.images,
        epochs=recipe.schedule.total_epochs,
        tflops=tflops,
    )


def show_hours(hours: float) -> str:
    """Hours in two or three digits, and in days where they are many."""
    days = f" ({hours / 24:,.0f} days)" if hours >= 240 else ""
    return f"{hours:,.0f} hours{days}" if hours >= 10 else f"{hours:.2g} hours"


def _paragraph(key: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {key:<9} ", subsequent_indent=" " * 12, break_on_hyphens=False)
