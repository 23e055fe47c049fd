"""The authors' Mask R-CNN and RetinaNet: files spelled out by hand, read, written back, recognised and refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.models.davit import checkpoint_filter_fn
from torch import Tensor

import davit
from davit.cli import main
from davit.models.detector import Detector
from davit.models.variants import VARIANTS
from davit.preprocessing import Preprocessing
from davit.weights.checkpoint import Header, read_header
from davit.weights.convert.heads import whole_config
from davit.weights.convert.infer import choose, read_shapes
from davit.weights.convert.mmdet import MASK_RCNN, RETINANET
from davit.weights.convert.recognise import locate
from davit.weights.load import check_tensors, read
from foreign import relative_error
from mmdet_files import HIDDEN, backbone_shapes, file_of, head_shapes, refused, saved
from small_detectors import KINDS, TINY, detector

PUBLISHED = {
    ("mask_rcnn", "davit_tiny"): 47.8,
    ("mask_rcnn", "davit_base"): 107.3,
    ("retinanet", "davit_tiny"): 38.5,
    ("retinanet", "davit_base"): 98.5,
}
FORMATS = {"mask_rcnn": MASK_RCNN, "retinanet": RETINANET}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", ["davit_tiny", "davit_base"])
def test_the_published_models_are_read_from_their_names_and_shapes_alone(kind: str, variant: str) -> None:
    """On the meta device: names and shapes of the official files, as mmdetection makes them, and nothing else."""
    config = VARIANTS[variant]
    with torch.device("meta"):
        shapes = backbone_shapes(config) | head_shapes(kind, 80, config, 256, 1024)
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
    found = locate(state)
    assert found.format is FORMATS[kind]
    tensors = found.format.to_ours(found.tensors)
    seen = read_shapes(tensors)
    assert seen.kind == "detector"
    whole = whole_config(seen, tensors, choose(seen, found.format, None, {})[0])
    assert (whole.num_classes, whole.backbone, whole.head.kind) == (80, config, kind)
    check_tensors(Header(kind="detector", config=whole), tensors)
    assert sum(t.numel() for t in tensors.values()) / 1e6 == pytest.approx(PUBLISHED[kind, variant], abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trips_are_equal_to_the_bit(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = file_of(kind)
    source, middle, back = saved(theirs, tmp_path / "a.pth"), tmp_path / "b.safetensors", tmp_path / "c.safetensors"
    assert main(["convert", str(source), str(middle), "--window", "7"]) == 0
    said = capsys.readouterr().out
    assert f"detector, {FORMATS[kind].name} to davit" in said
    assert "which no tensor tells; no class names" in said
    assert ("left out 2 tensors: backbone.norm0" in said) == (kind == "retinanet")
    assert main(["convert", str(middle), str(back), "--to", "mmdet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["to"] == "mmdet"
    again = load_file(back)
    unread = {"backbone.norm0.weight", "backbone.norm0.bias"} if kind == "retinanet" else set()
    assert set(again) == set(theirs) - unread
    assert all(torch.equal(again[name], theirs[name]) for name in again)
    ours = detector(kind).state_dict()
    state = FORMATS[kind].to_ours(FORMATS[kind].from_ours(ours))
    assert set(state) == set(ours)
    assert all(torch.equal(state[name], value) for name, value in ours.items())


def test_boxes_for_all_classes_at_once_are_known_by_their_rows(tmp_path: Path) -> None:
    row = torch.randn(4, HIDDEN)
    changes = {"roi_head__bbox_head__fc_reg__weight": row, "roi_head__bbox_head__fc_reg__bias": torch.randn(4)}
    theirs = changed("mask_rcnn", **changes)
    model = davit.load(saved(theirs, tmp_path / "a.pth"), window=7)
    assert model.config.head.class_agnostic_boxes
    assert torch.equal(model.head.regress.weight, row)
    assert not davit.load(saved(file_of("mask_rcnn"), tmp_path / "b.pth"), window=7).config.head.class_agnostic_boxes


WRAPPERS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state},
    "module": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers(wrap: str, tmp_path: Path) -> None:
    kind = "retinanet"
    theirs = file_of(kind)
    torch.save(WRAPPERS[wrap](theirs), tmp_path / "w.pth")
    model = davit.load(tmp_path / "w.pth", window=7)
    assert isinstance(model, Detector)
    assert torch.equal(model.head.classify.weight, theirs["bbox_head.retina_cls.weight"])


def test_a_retinanet_whose_norm_of_stride_4_was_taken_out(tmp_path: Path) -> None:
    theirs = {name: value for name, value in file_of("retinanet").items() if ".norm0." not in name}
    weights = read(saved(theirs, tmp_path / "r.pth"), window=7)
    assert weights.left == ()
    assert len(weights.tensors) == len(theirs)
    assert torch.equal(weights.tensors["norms.0.weight"], theirs["backbone.norm1.weight"])


def test_names_of_the_classes(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    model = davit.load(saved(file_of("mask_rcnn"), path, CLASSES=("ant", "bee", "cow")), window=7)
    assert isinstance(model, Detector)
    assert model.classes == ("ant", "bee", "cow")
    assert model.preprocessing == Preprocessing(size=(800, 1333), fit="within", crop=1.0, interpolation="bilinear")
    assert model.config == detector("mask_rcnn").config
    assert davit.load(saved(file_of("mask_rcnn"), path, CLASSES=("ant", "bee")), window=7).classes == ()
    assert davit.load(saved(file_of("mask_rcnn"), path, CLASSES=None), window=7).classes == ()
    assert davit.load(saved(file_of("mask_rcnn"), path, CLASSES=("a", "a", "b")), window=7).classes == ()

    own = tuple(f"kind {i}" for i in range(80))
    assert davit.load(saved(file_of("retinanet", 80), path, CLASSES=own), window=7).classes == own
    weights = read(saved(file_of("retinanet", 80), path), window=7)
    names = weights.header.classes  # COCO's, by their number
    assert (len(set(names)), names[0], names[39], names[79]) == (80, "person", "bottle", "toothbrush")
    assert weights.header.provenance["classes"] == "assumed from their number"


def test_names_survive_in_a_pytorch_file(tmp_path: Path) -> None:
    model = detector("mask_rcnn")
    model.classes = ("ant", "bee", "cow")
    davit.save(model, tmp_path / "ours.safetensors")
    assert main(["convert", str(tmp_path / "ours.safetensors"), str(tmp_path / "theirs.pth"), "--to", "mmdet"]) == 0
    assert main(["convert", str(tmp_path / "theirs.pth"), str(tmp_path / "b.safetensors"), "--window", "7"]) == 0
    assert read_header(tmp_path / "b.safetensors").classes == model.classes
    assert read_header(tmp_path / "b.safetensors").config == model.config


def test_backbone_and_norms_are_timms(tmp_path: Path) -> None:
    """Timm reads the authors' names by itself."""
    theirs = file_of("mask_rcnn")
    model = davit.load(saved(theirs, tmp_path / "m.pth"), window=7)
    tower = {
        k.removeprefix("backbone."): v for k, v in theirs.items() if k.startswith("backbone.") and ".norm" not in k[:14]
    }
    sizes = {"embed_dims": TINY.widths, "depths": TINY.depths, "num_heads": (1, 2, 3, 4), "num_classes": 0}
    peer = timm.create_model("davit_tiny", **sizes).eval()
    missing, unexpected = peer.load_state_dict(checkpoint_filter_fn(tower, peer), strict=False)
    assert not unexpected
    assert all("head.norm" in name for name in missing)
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        maps = peer.forward_intermediates(images, intermediates_only=True)
        own = [x.permute(0, 2, 3, 1) for x in model.backbone(images)]
        for stage, (norm, mine, x) in enumerate(zip(model.norms, own, maps, strict=True)):
            name = f"backbone.norm{stage}"
            wanted = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], theirs[f"{name}.weight"], theirs[f"{name}.bias"])
            assert relative_error(norm(mine), wanted) < 1e-5


def changed(kind: str, **names: Tensor | None) -> dict[str, Tensor]:
    state = file_of(kind) | {name.replace("__", "."): value for name, value in names.items()}
    return {name: value for name, value in state.items() if value is not None}


def cascade() -> dict[str, Tensor]:
    state = {name: value for name, value in file_of("mask_rcnn").items() if "roi_head.bbox_head" not in name}
    return state | {f"roi_head.bbox_head.{i}.fc_cls.weight": torch.ones(4, HIDDEN) for i in range(3)}


def swin() -> dict[str, Tensor]:
    heads = {name: value for name, value in file_of("mask_rcnn").items() if not name.startswith("backbone.")}
    names = ("patch_embed.projection.weight", "stages.0.blocks.0.attn.w_msa.relative_position_bias_table")
    return heads | {f"backbone.{name}": torch.ones(3, 3) for name in names}


def without_masks() -> dict[str, Tensor]:
    return {name: value for name, value in file_of("mask_rcnn").items() if "mask_head" not in name}


WRONG = {
    "cascade": (cascade, r"3 of \d+ tensors not in the mmdet-mask-rcnn format: roi_head\.bbox_head\.0\.fc_cls.*alone"),
    "swin": (swin, r"a Swin.*backbone\.stages\.0\.blocks\.0\.attn\.w_msa\.relative_position_bias_table"),
    "faster": (without_masks, r"12 tensors missing: .*head\.mask_convs\.0\.weight"),
    "missing": (
        lambda: changed("retinanet", bbox_head__reg_convs__2__conv__bias=None), r"missing: head\.box_convs\.2\.bias"
    ),
    "no laterals": (
        lambda: changed("retinanet", neck__lateral_convs__0__conv__weight=None), r"pyramid\.laterals\.0\.weight"
    ),
    "shape": (
        lambda: changed("mask_rcnn", neck__fpn_convs__1__conv__weight=torch.ones(16, 16, 1, 1)),
        r"pyramid\.outputs\.1\.weight .*\(16, 16, 1, 1\), wanted \(16, 16, 3, 3\)",
    ),
    "offsets": (
        lambda: changed("mask_rcnn", roi_head__bbox_head__fc_reg__weight=torch.ones(16, HIDDEN)),
        r"head\.regress\.weight .*has 16 rows, and 3 classes need four each",
    ),
    "anchors": (lambda: changed("retinanet", bbox_head__retina_reg__weight=torch.ones(24, 16, 3, 3)), "has 6 anchors"),
    "rpn anchors": (lambda: changed("mask_rcnn", rpn_head__rpn_cls__weight=torch.ones(5, 16, 1, 1)), "has 5 anchors"),
    "logits": (lambda: changed("retinanet", bbox_head__retina_cls__weight=torch.ones(20, 16, 3, 3)), "has 20 rows"),
    "norm": (
        lambda: changed("mask_rcnn", rpn_head__rpn_conv__running_mean=torch.ones(3)),
        r"1 of .*rpn_head\.rpn_conv\.running_mean",
    ),
    "two": (
        lambda: file_of("mask_rcnn") | {f"ema.{k}": v for k, v in file_of("mask_rcnn").items()},
        "2 DaViT towers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_other_models_are_refused_with_the_tensor_that_tells(case: str, tmp_path: Path) -> None:
    build, message = WRONG[case]
    refused(build(), message, tmp_path)


def test_other_detectors_still_give_their_backbone(tmp_path: Path) -> None:
    state = {name: value for name, value in file_of("mask_rcnn").items() if name.startswith(("backbone.", "neck."))}
    weights = read(saved(state | {"bbox_head.fc_reg.weight": torch.ones(2, 2)}, tmp_path / "d.pth"), window=7)
    assert (weights.header.kind, weights.format) == ("dense", "official-dense")
    assert len(weights.left) == 17


REFUSALS = [
    ("mask_rcnn", "mmseg", "the format holds no detector; use mmdet, or save its .backbone"),
    ("mask_rcnn", "official", "the format holds no detector; use mmdet"),
    (
        "davit_pico",
        "mmdet",
        "holds a whole detector, and this is a classifier; their training starts from the official",
    ),
    ("davit_pico", "mmseg", "holds a whole segmenter, and this is a classifier"),
]


@pytest.mark.parametrize(("model", "target", "reason"), REFUSALS)
def test_exports_that_have_no_place(
    model: str, target: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = detector(model) if model in KINDS else davit.create_model(model, num_classes=2)
    davit.save(built, tmp_path / "in.safetensors")
    assert main(["convert", str(tmp_path / "in.safetensors"), str(tmp_path / "out.pth"), "--to", target]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()
