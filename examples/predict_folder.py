"""Predict a folder from Python and print a table.

    python examples/predict_folder.py davit_tiny.msft_in1k photos

The model is a name of `davit models`, a checkpoint, an exported file or a folder of transformers.
"""

import sys
from pathlib import Path

import davit
from davit.decoding import SUFFIXES, ImageError


def main(model: str, folder: str) -> None:
    """Name what is in each picture; a broken one is told and the rest go on."""
    predictor = davit.Predictor.load(model)
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    width = max((len(str(path)) for path in paths), default=4)
    print(f"{'file':<{width}}  {'score':>6}  class")
    for path, result in zip(paths, predictor.stream(paths, top=1), strict=True):
        if isinstance(result, ImageError):
            print(f"{path!s:<{width}}  {'-':>6}  {result}")
        else:
            print(f"{path!s:<{width}}  {result.scores[0]:>6.1%}  {result.labels[0]}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
