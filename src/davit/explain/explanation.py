"""A picture explained: attention, rollout, Grad-CAM and occlusion of what a model makes of it."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from davit.decoding import as_shown
from davit.explain import drawing
from davit.explain.attention import Blocks, backbone_of, check_point, places, record_attention, seen_whole
from davit.explain.attention_maps import AttentionRecord
from davit.explain.explained import Cam, Explained, PictureRollout
from davit.explain.grad_cam import grad_cam
from davit.explain.occlusion import OcclusionConfig, cell_side, occlusion_map
from davit.explain.payload import Detail, lattice, sample_data
from davit.explain.rollout import attention_rollout, one_hot
from davit.explain.targets import Target, find_targets
from davit.preprocessing import Preprocessing

MOST_ASKING = 14  # positions of the last map that are followed back, per side


def explain_picture(model: nn.Module, image: Image.Image, *, class_index: int | None = None) -> dict[str, Any]:
    """Explain what a model makes of a picture, as JSON values that a browser draws.

    Args:
        model: of `davit.load`, with its preprocessing; a backbone, too. It is put into eval mode. Other threads may
            use it meanwhile.
        image: any size and mode.
        class_index: the class to explain; by default the surest.

    Returns:
        The keys of `payload.sample_data` for the last block of each stage; `cam`, the Grad-CAM of the answer at the map
        that suits it (`class`, `label`, `score`, `image`: heat with transparency, the size of the map), or None where
        the model gives no classes or finds nothing; `rollout`, whose `image` is the mean over all positions.

    Raises:
        ValueError: a model without preprocessing, a class that it does not have, or nothing of it in this picture.
    """
    preprocessing = getattr(model, "preprocessing", None)
    if not isinstance(preprocessing, Preprocessing):
        raise ValueError(
            f"this {type(model).__name__} does not say how images are prepared for it: set its .preprocessing, for "
            "example to davit.preprocessing.Preprocessing.imagenet(224)"
        )
    model.eval()
    pixels = preprocessing(as_shown(image))
    targets = find_targets(model, pixels, class_index=class_index)
    sample = explain_pixels(model, pixels, targets, preprocessing=preprocessing)
    data = sample_data(sample, Detail())
    return data | {"cam": data["cams"][0] if data["cams"] else None}


def explain_pixels(
    model: nn.Module,
    pixels: Tensor,
    targets: Sequence[Target],
    *,
    preprocessing: Preprocessing | None,
    name: str = "",
    right: bool = True,
    blocks: Blocks = "last",
    points: Sequence[tuple[float, float]] = (),
    occlusion: OcclusionConfig | None = None,
) -> Explained:
    """Explain what a model makes of an image.

    Args:
        model: in eval mode.
        pixels: (C, height, width), normalised.
        targets: what of the answer to explain, of `find_targets` or `likeness`.
        preprocessing: how the image was prepared, to show it.
        name: what to call it.
        right: whether the answer is right, where that is known.
        blocks: whose attention is kept.
        points: y and x in pixels of the image, whose positions of the last map are followed back.
        occlusion: also cover parts of the image, which asks the model a hundred times or more.

    Raises:
        ValueError: a model in training mode, a block that is not there, or a point outside.
    """
    for point in points:
        check_point(point, pixels.shape[-2:])
    record = record_attention(model, pixels, "all")
    return Explained(
        image=drawing.picture(pixels, preprocessing),
        name=name,
        right=right,
        record=_kept(record, places(backbone_of(model).config.depths, blocks)),
        cams=tuple(_cam(model, pixels, target, occlusion) for target in targets),
        points=tuple(points),
        rollout=picture_rollout(model, pixels, record, points),
    )


def picture_rollout(
    model: nn.Module, pixels: Tensor, record: AttentionRecord, points: Sequence[tuple[float, float]] = ()
) -> PictureRollout:
    """The rollout of the last map: its mean, of a lattice of its positions, and of those under points.

    Args:
        model: in eval mode.
        pixels: (C, height, width), normalised.
        record: the attention of all blocks.
        points: y and x in pixels.
    """
    height, width = seen_whole(model, pixels).shape[-2:]
    side = (-(-height // 32), -(-width // 32))
    step = -(-max(side) // MOST_ASKING)
    rows, columns = lattice(side[0], step), lattice(side[1], step)
    mean = torch.full((1, *side), 1.0 / (side[0] * side[1]), dtype=torch.float64)
    under = [one_hot(side, torch.tensor([int(y) // 32]), torch.tensor([int(x) // 32])) for y, x in points]
    asking = torch.cat([mean, one_hot(side, rows, columns), *under])
    found = attention_rollout(model, pixels, asking=asking, record=record)
    last = 1 + len(rows) * len(columns)
    return PictureRollout(
        side=side,
        mean=found.rows[0],
        step=step,
        rows=rows,
        columns=columns,
        tiles=found.rows[1:last].unflatten(0, (len(rows), len(columns))),
        at=found.rows[last:],
        channels=found.channels,
    )


def _kept(record: AttentionRecord, kept: Sequence[tuple[int, int]]) -> AttentionRecord:
    return AttentionRecord(
        windows=tuple(each for each in record.windows if (each.stage, each.block) in kept),
        channels=tuple(each for each in record.channels if (each.stage, each.block) in kept),
    )


def _cam(model: nn.Module, pixels: Tensor, target: Target, occlusion: OcclusionConfig | None) -> Cam:
    maps = grad_cam(model, pixels, target)
    if occlusion is None:
        return Cam(target=target, maps=maps)
    covered = occlusion_map(model, pixels, target, occlusion)
    return Cam(target=target, maps=maps, occlusion=covered, cell=cell_side(pixels.shape[1], pixels.shape[2], occlusion))
