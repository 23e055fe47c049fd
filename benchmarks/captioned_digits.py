"""What captioned digits teach: scores of an image-text model, and whether a classifier learns to read such digits.

    python benchmarks/captioned_digits.py score runs/digits.contrastive/model.safetensors
    python benchmarks/captioned_digits.py classify [--model davit|cnn] [--init FILE] [--size 64] [--digits 14 28]
    python benchmarks/captioned_digits.py classify --digits 34 54 --steps 400 --standardise --bright 150 --matrix-rate 3

`score`: image to text R@1 over 200 unseen scenes, by the number of digits in them, and how many of 400 unseen single
digits are named right by their names alone. `classify`: the training loss of a classifier of scenes with one digit, by
cross-entropy from the whole picture's label, with Muon for DaViT and AdamW for the CNN; `--bright` shows, for that many
steps, only digits that are brighter than what is around them.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from davit.data import scenes
from davit.data.captions import CaptionedScenes, Pairs, named
from davit.evaluation.retrieval import recalls
from davit.inference.zero_shot import Labels, zero_shot
from davit.models.classifier import Classifier
from davit.models.clip import ImageTextModel
from davit.models.config import ClassifierConfig
from davit.preprocessing import Preprocessing
from davit.recipes import make_recipe
from davit.train.initialise import initialise, values_of
from davit.train.optimizer import OptimizerConfig, make_optimizer, set_rate
from davit.weights.load import load

BATCH, WARMUP, EVERY = 32, 50, 25


def score(checkpoint: Path) -> None:
    """Print the scores of a model."""
    model = load(checkpoint)
    assert isinstance(model, ImageTextModel)
    assert model.preprocessing is not None
    side = model.preprocessing.size[0]
    pairs = Pairs(CaptionedScenes("test", 200, size=side), model.config.head.text.context)
    images = torch.stack([model.preprocessing(pairs[i][0]) for i in range(200)])
    tokens = torch.stack([pairs[i][1].tokens for i in range(200)])
    labels = torch.tensor([pairs[i][1].label for i in range(200)])
    with torch.no_grad():
        pictures, texts = model.embed_images(images), model.embed_texts(tokens)
    print("image to text:", recalls(pictures, labels, texts, labels, "r"))
    scene = CaptionedScenes("test", 200, size=side).scenes
    counts = torch.tensor([len(scene.placed(i)) for i in range(200)])
    for count in counts.unique().tolist():
        chosen = counts == count
        found = recalls(pictures[chosen], labels[chosen], texts, labels, "r")["r_r1"]
        print(f"  {count} digits: R@1 {found:.3f} of {int(chosen.sum())}")
    singles = CaptionedScenes("test", 400, seed=1, size=side, most=1)
    pixels = torch.stack([model.preprocessing(singles[i][0]) for i in range(400)])
    digits = torch.tensor([singles.scenes.placed(i)[0].digit for i in range(400)])
    classifier = zero_shot(model, Labels(names=tuple(named(digit) for digit in range(10))))
    with torch.no_grad():
        right = (classifier(pixels).argmax(1) == digits).double().mean()
    print(f"single digits by their names: {float(right):.3f} of 400")


def classify(options: argparse.Namespace) -> None:
    """Train a classifier and print its loss, averaged over about 20 steps."""
    kind, init, side, digits, steps = options.model, options.init, options.size, options.digits, options.steps
    scenes.SMALLEST, scenes.LARGEST = digits[0], digits[1] / side
    data = CaptionedScenes("train", steps * BATCH, size=side, most=1, bright=options.bright * BATCH)
    preprocessing = Preprocessing.imagenet(side, crop=1.0)
    torch.manual_seed(0)
    start = load(init) if init else None
    model: nn.Module
    if kind == "cnn":
        model, rate = small_cnn(), 3e-3
        optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "scale": 1.0}], lr=rate)
    else:
        backbone = make_recipe("digits.contrastive").model.backbone
        if start is not None:
            backbone = replace(start.config.backbone, drop_path=0.0)  # type: ignore[missing-attribute]
        model, rate = Classifier(ClassifierConfig(backbone=backbone, num_classes=10)), 2e-3
        initialise(model, 0, values_of(start, model) if start is not None else {})
        optimizer = make_optimizer(
            model,
            OptimizerConfig(kind="muon", learning_rate=rate, betas=(0.9, 0.98), matrix_rate=options.matrix_rate),
        )
    mean = 0.0
    for step in range(steps):
        set_rate(optimizer, rate * min(1, (step + 1) / WARMUP) * (0.5 + 0.5 * math.cos(math.pi * step / steps)))
        chosen = range(step * BATCH, (step + 1) * BATCH)
        pixels = torch.stack([preprocessing(data[i][0]) for i in chosen])
        if options.standardise:
            pixels = pixels - pixels.mean((1, 2, 3), keepdim=True)
            pixels = pixels / pixels.std((1, 2, 3), keepdim=True)
        wanted = torch.tensor([data.scenes.placed(i)[0].digit for i in chosen])
        loss = F.cross_entropy(model.train()(pixels), wanted)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = 0.95 * mean + 0.05 * float(loss.detach())
        if (step + 1) % EVERY == 0:
            print(
                f"step {step + 1}: loss {mean / (1 - 0.95 ** (step + 1)):.3f} (chance: {math.log(10):.3f})", flush=True
            )


def small_cnn() -> nn.Module:
    """Four convolutions with batch norm, three of them of stride 2."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 32, 2), (32, 64, 2), (64, 128, 2), (128, 128, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def main() -> None:
    """Score or classify."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("score").add_argument("checkpoint", type=Path)
    learn = verbs.add_parser("classify")
    learn.add_argument("--model", choices=("davit", "cnn"), default="davit")
    learn.add_argument("--init", default="", help="a checkpoint whose backbone to start from")
    learn.add_argument("--size", type=int, default=64, help="side of the scenes")
    learn.add_argument("--digits", type=float, nargs=2, default=(14.0, 28.0), help="heights of the digits, in pixels")
    learn.add_argument("--steps", type=int, default=200)
    learn.add_argument("--matrix-rate", type=float, default=1.0, help="of Muon's matrices, over the rate")
    learn.add_argument("--standardise", action="store_true", help="give each picture a mean of 0 and a deviation of 1")
    learn.add_argument("--bright", type=int, default=0, help="steps that show bright digits only")
    options = parser.parse_args()
    if options.verb == "score":
        score(options.checkpoint)
    else:
        classify(options)


if __name__ == "__main__":
    main()
