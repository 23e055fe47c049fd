"""Scores that papers and their repositories print, for DaViT and its peers; data only.

Every row was read in the source that it names. What could not be read there is left out: PVTv2's multiply-adds, the
Large, Huge and Giant on COCO and ADE20K, and any score of davit_pico and davit_nano, which are ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Task = Literal["classification", "detection", "segmentation"]

IMAGENET = "ImageNet-1k"
IMAGENET_22K = "ImageNet-22k"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A printed score of a model.

    Attributes:
        model: as `davit models` or timm names it; for what neither has, as its paper does.
        family: of the model.
        score: in percent.
        size: side of the pictures in pixels; of detectors and segmenters, the short side or the crop.
        parameters: in millions, as printed.
        macs: in 1e9 multiply-adds, as printed (most papers call them FLOPs); None where none are.
        source: where it was read.
        pretraining: what the weights saw before, or all they saw.
        task: what was scored.
        metric: of the score.
        head: what stands on the backbone, and how long it was trained; empty for classifiers.
        in_timm: whether timm can build it.
    """

    model: str
    family: str
    score: float
    size: int
    parameters: float
    macs: float | None
    source: str
    pretraining: str = IMAGENET
    task: Task = "classification"
    metric: str = "top-1"
    head: str = ""
    in_timm: bool = True


Row = tuple[str, float, int, float, float | None]  # model, score, size, parameters, macs


def _rows(family: str, source: str, *rows: Row) -> list[Published]:
    return [
        Published(model=m, family=family, score=s, size=size, parameters=p, macs=macs, source=source)
        for m, s, size, p, macs in rows
    ]


def _on(pretraining: str, rows: Sequence[Published]) -> list[Published]:
    return [replace(row, pretraining=pretraining) for row in rows]


_DAVIT = "arXiv 2204.03645; README of github.com/dingmyu/davit"
_SWIN = "arXiv 2103.14030; MODELHUB.md of github.com/microsoft/Swin-Transformer (the paper's table 1 has 81.3 and 83.0)"
_SWINV2 = "arXiv 2111.09883; MODELHUB.md of github.com/microsoft/Swin-Transformer"
_FOCAL = "arXiv 2107.00641; README of github.com/microsoft/Focal-Transformer (the paper has 83.5 and 83.8)"
_FOCALNET = "arXiv 2203.11926; README of github.com/microsoft/FocalNet"
_PVT = "arXiv 2106.13797; classification/README.md of github.com/whai362/PVT"
_MIXER = "arXiv 2105.01601; as listed in MODELHUB.md of github.com/microsoft/Swin-Transformer"
_DEIT = "arXiv 2012.12877 (DeiT without distillation); README_deit.md of github.com/facebookresearch/deit"
_CONVNEXT = "arXiv 2201.03545; README of github.com/facebookresearch/ConvNeXt"

CLASSIFIERS: tuple[Published, ...] = (
    *_rows(
        "DaViT",
        _DAVIT,
        ("davit_tiny", 82.8, 224, 28.3, 4.5),
        ("davit_small", 84.2, 224, 49.7, 8.8),
        ("davit_base", 84.6, 224, 87.9, 15.5),
    ),
    *_on(
        IMAGENET_22K,
        _rows(
            "DaViT",
            "arXiv 2204.03645, as quoted by github.com/leondgarse/keras_cv_attention_models",
            ("davit_large_384", 87.5, 384, 196.8, 103.0),
        ),
    ),
    *_on(
        "1.5 billion image-text pairs",
        _rows(
            "DaViT",
            "arXiv 2204.03645, abstract (Giant), as quoted by github.com/leondgarse/keras_cv_attention_models (Huge)",
            ("davit_huge", 90.2, 512, 362.0, None),
            ("davit_giant", 90.4, 512, 1437.0, None),
        ),
    ),
    *_rows(
        "Swin",
        _SWIN,
        ("swin_tiny_patch4_window7_224", 81.2, 224, 28, 4.5),
        ("swin_small_patch4_window7_224", 83.2, 224, 50, 8.7),
        ("swin_base_patch4_window7_224", 83.5, 224, 88, 15.4),
        ("swin_base_patch4_window12_384", 84.5, 384, 88, 47.1),
    ),
    *_on(
        IMAGENET_22K,
        _rows(
            "Swin",
            _SWIN,
            ("swin_large_patch4_window7_224", 86.3, 224, 197, 34.5),
            ("swin_large_patch4_window12_384", 87.3, 384, 197, 103.9),
        ),
    ),
    *_rows(
        "SwinV2",
        _SWINV2,
        ("swinv2_tiny_window8_256", 81.8, 256, 28, 5.9),
        ("swinv2_small_window8_256", 83.7, 256, 50, 11.5),
        ("swinv2_base_window8_256", 84.2, 256, 88, 20.3),
        ("swinv2_tiny_window16_256", 82.8, 256, 28, 6.6),
        ("swinv2_small_window16_256", 84.1, 256, 50, 12.6),
        ("swinv2_base_window16_256", 84.6, 256, 88, 21.8),
    ),
    *_on(
        IMAGENET_22K,
        _rows(
            "SwinV2",
            _SWINV2,
            ("swinv2_base_window12to24_192to384", 87.1, 384, 88, 54.7),
            ("swinv2_large_window12to24_192to384", 87.6, 384, 197, 115.4),
        ),
    ),
    *(
        replace(row, in_timm=False)
        for row in _rows(
            "Focal",
            _FOCAL,
            ("Focal-T", 82.2, 224, 28.9, 4.9),
            ("Focal-S", 83.6, 224, 51.1, 9.4),
            ("Focal-B", 84.0, 224, 89.8, 16.4),
        )
    ),
    *_rows(
        "FocalNet",
        _FOCALNET,
        ("focalnet_tiny_lrf", 82.3, 224, 28.6, 4.5),
        ("focalnet_small_lrf", 83.5, 224, 50.3, 8.7),
        ("focalnet_base_lrf", 83.9, 224, 88.7, 15.4),
        ("focalnet_tiny_srf", 82.1, 224, 28.4, 4.4),
        ("focalnet_small_srf", 83.4, 224, 49.9, 8.6),
        ("focalnet_base_srf", 83.7, 224, 88.1, 15.3),
    ),
    *_rows(
        "PVTv2",
        _PVT,
        ("pvt_v2_b0", 70.5, 224, 3.4, None),
        ("pvt_v2_b1", 78.7, 224, 13.1, None),
        ("pvt_v2_b2", 82.0, 224, 25.4, None),
        ("pvt_v2_b2_li", 82.1, 224, 22.6, None),
        ("pvt_v2_b3", 83.1, 224, 45.2, None),
        ("pvt_v2_b4", 83.6, 224, 62.6, None),
        ("pvt_v2_b5", 83.8, 224, 82.0, None),
    ),
    *_rows("MLP-Mixer", _MIXER, ("mixer_b16_224", 76.4, 224, 59, 12.7)),
    *_rows(
        "ViT",
        _DEIT,
        ("vit_tiny_patch16_224", 72.2, 224, 5, None),
        ("vit_small_patch16_224", 79.9, 224, 22, None),
        ("vit_base_patch16_224", 81.8, 224, 86, None),
    ),
    *_rows(
        "ConvNeXt",
        _CONVNEXT,
        ("convnext_tiny", 82.1, 224, 28, 4.5),
        ("convnext_small", 83.1, 224, 50, 8.7),
        ("convnext_base", 83.8, 224, 89, 15.4),
        ("convnext_large", 84.3, 224, 198, 34.4),
    ),
    *_on(IMAGENET_22K, _rows("ConvNeXt", _CONVNEXT, ("convnext_xlarge", 87.0, 224, 350, 60.9))),
)


def _dense(task: Task, metric: str, head: str, size: int, *rows: tuple[str, float, float]) -> list[Published]:
    return [
        Published(
            model=model,
            family="DaViT",
            score=score,
            size=size,
            parameters=parameters,
            macs=None,  # the printed ones are for pictures of other sizes
            source=_DAVIT,
            task=task,
            metric=metric,
            head=head,
        )
        for model, score, parameters in rows
    ]


DENSE: tuple[Published, ...] = (
    *_dense(
        "detection",
        "box AP",
        "mask_rcnn, 3x",
        800,
        ("davit_tiny", 47.4, 47.8),
        ("davit_small", 49.5, 69.2),
        ("davit_base", 49.9, 107.3),
    ),
    *_dense(
        "detection",
        "box AP",
        "retinanet, 3x",
        800,
        ("davit_tiny", 46.5, 38.5),
        ("davit_small", 48.2, 59.9),
        ("davit_base", 48.7, 98.5),
    ),
    *_dense(
        "segmentation",
        "mIoU",
        "upernet",
        512,
        ("davit_tiny", 46.3, 60),
        ("davit_small", 48.8, 81),
        ("davit_base", 49.4, 121),
    ),
)


def published(model: str, task: Task = "classification", head: str = "") -> Published | None:
    """The printed score of a model; for detectors, of a head such as "retinanet"."""
    rows = CLASSIFIERS if task == "classification" else DENSE
    found = (row for row in rows if row.model == model and row.task == task and row.head.startswith(head))
    return next(found, None)


def nearest_peers(parameters: int) -> list[Published]:
    """Of each family that timm has, DaViT's own left out, the model whose parameters are nearest in ratio."""
    families = dict.fromkeys(row.family for row in CLASSIFIERS if row.in_timm and row.family != "DaViT")

    def far(row: Published) -> float:
        return abs(math.log(1e6 * row.parameters / parameters))

    return [min((row for row in CLASSIFIERS if row.family == family), key=far) for family in families]


def nearest_published_only(parameters: int) -> list[Published]:
    """The same of the families that timm does not have."""
    rows = [row for row in CLASSIFIERS if not row.in_timm]
    return sorted(rows, key=lambda row: abs(math.log(1e6 * row.parameters / parameters)))[:1]
