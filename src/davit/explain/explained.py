"""One picture with all that explains what a model makes of it."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from davit.explain.attention_maps import AttentionRecord
from davit.explain.targets import Target


@dataclass(frozen=True, kw_only=True)
class Cam:
    """Where a picture speaks for one number of its answer.

    Attributes:
        target: the number.
        maps: Grad-CAM at each of the four maps, (H, W) each, zero or more.
        occlusion: what the number loses where the picture is covered, (rows, columns); None if not asked for.
        cell: pixels of an occlusion cell's side.
    """

    target: Target
    maps: tuple[Tensor, ...]
    occlusion: Tensor | None = None
    cell: int = 1


@dataclass(frozen=True, kw_only=True)
class PictureRollout:
    """Attention rollout of the last map to the cells of the first.

    Attributes:
        side: H and W of the last map.
        mean: over all positions of the last map, (h, w); sums to one.
        step: positions between those that were followed.
        rows: rows of the last map that single positions were followed from.
        columns: columns, likewise.
        tiles: their rollouts, (rows, columns, h, w); each sums to one.
        at: of the positions under the points that were asked for, (points, h, w).
        channels: for each stage (groups, D, D); empty without channel attention.
    """

    side: tuple[int, int]
    mean: Tensor
    step: int
    rows: Tensor
    columns: Tensor
    tiles: Tensor
    at: Tensor
    channels: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One picture explained.

    Attributes:
        image: what the model saw.
        name: what to call the picture.
        right: whether the model's answer is right, where that is known.
        record: the attention in it.
        answer: labels and shares of the model's answer, best first; empty where it gives none.
        cams: Grad-CAM and occlusion of its answer, the surest first; none for a model without an answer.
        points: y and x in pixels of the image, where single positions were asked for.
        rollout: of its positions; None where it was not asked for.
    """

    image: Image.Image
    name: str
    record: AttentionRecord
    right: bool = True
    answer: tuple[tuple[str, float], ...] = ()
    cams: tuple[Cam, ...] = ()
    points: tuple[tuple[float, float], ...] = ()
    rollout: PictureRollout | None = None
