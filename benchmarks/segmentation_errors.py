"""Where a segmenter of digit scenes errs: mean IoU as it is, and as it would be if one kind of error were mended.

    python benchmarks/segmentation_errors.py runs/digits.segmentation/model.safetensors [--split train --seed 77]

`edges`: every pixel of a digit, and no other, gets the likeliest digit. `digits`: pixels rightly taken for a digit get
the true one. `one digit`: the pixels found of an instance get the digit that most of them were given.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from davit.data.scenes import Scenes
from davit.evaluation.mean_iou import MeanIoU
from davit.models.class_map import class_map
from davit.models.upernet import Segmenter
from davit.structures import Picture
from davit.weights.load import load


def mended(logits: Tensor, resized: tuple[int, int], truth: Tensor, instances: Tensor) -> dict[str, Tensor]:
    """The classes of a picture's pixels by kind of mending, (height, width) each."""
    size = (truth.shape[0], truth.shape[1])
    found = class_map(logits, resized, size)
    digit = class_map(logits[1:], resized, size) + 1
    voted = found.clone()
    for instance in instances:
        pixels = instance & (found > 0)
        if pixels.any():
            voted[pixels] = found[pixels].mode().values
    right = (found > 0) & (truth > 0)
    return {
        "as it is": found,
        "edges": torch.where(truth > 0, digit, 0),
        "digits": torch.where(right, truth, found),
        "one digit": voted,
    }


@torch.no_grad()
def main() -> None:
    """Print a line for each kind of mending."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--split", default="test", choices=("test", "train"), help="whose digits the scenes show")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes; those of training have 0")
    options = parser.parse_args()
    model = load(options.model).eval()
    if not isinstance(model, Segmenter) or model.preprocessing is None:
        parser.error(f"{options.model} holds no segmenter of pictures")
    maps = Scenes(options.split, options.scenes, "segmentation", seed=options.seed)
    objects = Scenes(options.split, options.scenes, "detection", seed=options.seed)
    counts: dict[str, MeanIoU] = {}
    for index in range(options.scenes):
        picture, classes = maps[index]
        pixels = model.preprocessing(picture)[None]
        instances = objects[index][1].masks
        truth = torch.from_numpy(classes)
        known = Picture(index=index, size=maps.size(index), classes=truth)
        logits = model(pixels).logits[0]
        for kind, result in mended(logits, tuple(pixels.shape[-2:]), truth, instances).items():
            counts.setdefault(kind, MeanIoU(len(maps.classes), maps.classes)).update([result], (known,))
    for kind, count in counts.items():
        print(f"{kind:10} {count.compute()['miou']:.4f}")


if __name__ == "__main__":
    main()
