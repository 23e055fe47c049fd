"""Classify pictures with a file of `davit export` where neither davit nor PyTorch is installed.

Needs: pip install onnxruntime numpy pillow

    davit export davit_tiny.msft_in1k tiny.onnx                 # where davit is
    python examples/onnx_without_davit.py tiny.onnx cat.jpg     # anywhere

The file says itself how pictures are prepared for it and what its classes are called.
"""

import json
import math
import sys
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def prepare(picture: Image.Image, how: dict[str, Any]) -> np.ndarray:
    """A picture as the model takes it, (1, channels, height, width)."""
    picture = ImageOps.exif_transpose(picture).convert("L" if len(how["mean"]) == 1 else "RGB")
    height, width = how["size"]
    filter = Image.Resampling[how["interpolation"].upper()]
    if how["fit"] == "within":
        scale = min(height / min(picture.size), width / max(picture.size))
        picture = picture.resize(tuple(max(1, int(side * scale + 0.5)) for side in picture.size), filter)
    elif how["fit"] == "squash":
        picture = picture.resize((width, height), filter)
    else:
        wide, high = enlarged(picture.size, (width, height), how["crop"])
        left, top = round((wide - width) / 2), round((high - height) / 2)
        picture = picture.resize((wide, high), filter).crop((left, top, left + width, top + height))
    pixels = np.asarray(picture, np.float32).reshape(picture.height, picture.width, -1) / 255
    pixels = (pixels - np.float32(how["mean"])) / np.float32(how["std"])
    return pixels.transpose(2, 0, 1)[None]


def enlarged(picture: tuple[int, int], target: tuple[int, int], crop: float) -> tuple[int, int]:
    """Width and height to resize a picture to, before the centre is cut out."""
    if target[0] == target[1]:
        side = math.floor(target[0] / crop)
        other = int(side * max(picture) / min(picture))
        return (side, other) if picture[0] <= picture[1] else (other, side)
    ratio = min(have / math.floor(want / crop) for have, want in zip(picture, target, strict=True))
    return round(picture[0] / ratio), round(picture[1] / ratio)


def main(model: str, *paths: str) -> None:
    """Print the five best classes of each picture."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    if about["kind"] != "classifier":
        raise SystemExit(f"{model} is a {about['kind']}, and this is for classifiers")
    how, classes = json.loads(about["preprocessing"]), json.loads(about["classes"])
    for path in paths:
        with Image.open(path) as picture:
            (logits,) = session.run(["logits"], {"images": prepare(picture, how)})
        scores = np.exp(logits[0] - logits[0].max())
        scores /= scores.sum()
        for index in np.argsort(-scores)[:5]:
            print(f"{path}\t{scores[index]:.5f}\t{classes[index] if classes else index}")


if __name__ == "__main__":
    main(*sys.argv[1:])
