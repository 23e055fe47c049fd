"""What `davit evaluate` scores: a checkpoint or an exported file, with the preprocessing it is to be scored with."""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from davit.inference.backends import BackendName

if TYPE_CHECKING:
    from davit.inference.backends.protocol import Backend
    from davit.models.zero_shot import ZeroShotClassifier


def open_scored(
    checkpoint: str,
    variant: str | None,
    size: int | None,
    crop: float | None,
    device: str | None,
    name: BackendName,
    trust: bool,
    named: "ZeroShotClassifier | None",
) -> "Backend":
    """Open what is to be scored, with the preprocessing it is to be scored with."""
    backend = _open(checkpoint, variant, size, device, name, trust, named)
    preprocessing = backend.preprocessing
    if size is not None:
        long = round(size * preprocessing.size[1] / preprocessing.size[0]) if preprocessing.fit == "within" else size
        preprocessing = replace(preprocessing, size=(size, long))
    backend.preprocessing = preprocessing if crop is None else replace(preprocessing, fit="crop", crop=crop)
    return backend


def _open(
    checkpoint: str,
    variant: str | None,
    size: int | None,
    device: str | None,
    name: BackendName,
    trust: bool,
    named: "ZeroShotClassifier | None",
) -> "Backend":
    from davit.inference.backends.choosing import make_backend
    from davit.inference.backends.opening import exported_format, load_with_head, open_backend
    from davit.preprocessing import Preprocessing

    if named is None and exported_format(checkpoint):
        return open_backend(checkpoint, variant=variant, device=device, backend=name, trust=trust)
    model = load_with_head(checkpoint, variant) if named is None else named
    if model.preprocessing is None:
        if size is None:
            raise ValueError(f"{checkpoint} does not say how images are prepared for it: give their side with --size")
        model.preprocessing = Preprocessing.imagenet(size, model.config.backbone.in_channels)
    return make_backend(model, name, device, tell=_tell)


def _tell(choice: str) -> None:
    print(f"davit evaluate: {choice}", file=sys.stderr)
