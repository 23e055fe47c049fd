"""The authors' UPerNet: files spelled out by hand, read, compared with transformers' heads, written and refused."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

import davit
from davit.cli import main
from davit.models.segmenter_config import SegmenterConfig, UPerNetHead
from davit.models.upernet import Segmenter
from davit.models.variants import VARIANTS
from davit.preprocessing import Preprocessing
from davit.weights.checkpoint import Header
from davit.weights.convert.heads import whole_config
from davit.weights.convert.infer import choose, read_shapes
from davit.weights.convert.mmseg import UPERNET
from davit.weights.convert.recognise import locate
from davit.weights.load import check_tensors, read
from foreign import relative_error
from mmdet_files import Shapes, backbone_shapes, layers, random_tensors, refused, saved
from small_detectors import TINY

HEAD = UPerNetHead(channels=24, auxiliary_channels=20)


def conv_module(prefix: str, out: int, into: int, kernel: int) -> Shapes:
    """Mmcv's ConvModule with batch norm."""
    norm = dict.fromkeys((f"{prefix}.bn.running_mean", f"{prefix}.bn.running_var"), (out,))
    shapes = {f"{prefix}.conv.weight": (out, into, kernel, kernel), f"{prefix}.bn.num_batches_tracked": ()}
    return shapes | layers(f"{prefix}.bn", (out,)) | norm


def upernet_shapes(classes: int, config=TINY, head: UPerNetHead = HEAD) -> Shapes:
    """What mmsegmentation calls the tensors of a model of the authors' configuration."""
    c, widths = head.channels, config.widths
    shapes = backbone_shapes(config)
    for i in range(4):
        shapes |= conv_module(f"decode_head.psp_modules.{i}.1", c, widths[3], 1)
    for i in range(3):
        shapes |= conv_module(f"decode_head.lateral_convs.{i}", c, widths[i], 1)
        shapes |= conv_module(f"decode_head.fpn_convs.{i}", c, c, 3)
    shapes |= conv_module("decode_head.bottleneck", c, widths[3] + 4 * c, 3)
    shapes |= conv_module("decode_head.fpn_bottleneck", c, 4 * c, 3)
    shapes |= conv_module("auxiliary_head.convs.0", head.auxiliary_channels, widths[2], 3)
    shapes |= layers("decode_head.conv_seg", (classes, c, 1, 1))
    return shapes | layers("auxiliary_head.conv_seg", (classes, head.auxiliary_channels, 1, 1))


def file_of(classes: int = 7) -> dict[str, Tensor]:
    state = random_tensors(upernet_shapes(classes))
    for name, value in state.items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(160_000)
    return state


@pytest.mark.parametrize(("variant", "millions"), [("davit_tiny", 60), ("davit_small", 81), ("davit_base", 121)])
def test_the_published_models_are_read_from_their_names_and_shapes_alone(variant: str, millions: int) -> None:
    with torch.device("meta"):
        shapes = upernet_shapes(150, VARIANTS[variant], UPerNetHead())
        state = {name: torch.empty(shape, dtype=None if shape else torch.int64) for name, shape in shapes.items()}
    found = locate(state)
    assert (found.format, found.left) == (UPERNET, ())
    tensors = UPERNET.to_ours(found.tensors)
    seen = read_shapes(tensors)
    whole = whole_config(seen, tensors, choose(seen, UPERNET, None, {})[0])
    assert whole == SegmenterConfig(backbone=VARIANTS[variant], head=UPerNetHead(), num_classes=150)
    check_tensors(Header(kind="segmenter", config=whole), tensors)
    learnt = sum(value.numel() for name, value in tensors.items() if "running" not in name and value.ndim)
    assert int(learnt / 1e6) == millions


def test_round_trips_are_equal_to_the_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = file_of()
    source, middle, back = saved(theirs, tmp_path / "a.pth"), tmp_path / "b.safetensors", tmp_path / "c.safetensors"
    assert main(["convert", str(source), str(middle), "--window", "7"]) == 0
    said = capsys.readouterr().out
    assert "segmenter, mmseg-upernet to davit" in said
    assert "in float32\n" in said
    assert "pooling to grids of 1, 2, 3, 6, which no tensor tells" in said
    assert "left out" not in said
    assert main(["convert", str(middle), str(back), "--to", "mmseg"]) == 0
    again = load_file(back)
    assert set(again) == set(theirs)
    assert all(torch.equal(again[name], value) and again[name].dtype == value.dtype for name, value in theirs.items())
    assert main(["convert", str(middle), str(tmp_path / "d.pth"), "--to", "mmdet"]) == 2
    assert "the format holds no segmenter; use mmseg, or save its .backbone" in capsys.readouterr().err


def peer(head: torch.nn.Module, state: Mapping[str, Tensor], prefix: str) -> torch.nn.Module:
    """A head of transformers with the tensors of the file, whose names differ in two words."""
    renamed = {
        name.removeprefix(prefix).replace(".bn.", ".batch_norm.").replace("conv_seg", "classifier"): value
        for name, value in state.items()
        if name.startswith(prefix)
    }
    head.load_state_dict(renamed)
    return head.eval()


@torch.no_grad()
def test_heads_answer_as_transformers_with_the_tensors_of_the_file(tmp_path: Path) -> None:
    theirs = file_of()
    model = davit.load(saved(theirs, tmp_path / "s.pth"), window=7)
    assert isinstance(model, Segmenter)
    assert model.config == SegmenterConfig(backbone=TINY, head=HEAD, num_classes=7)
    assert model.preprocessing == Preprocessing(size=(512, 2048), fit="within", crop=1.0, interpolation="bilinear")
    images = torch.randn(2, 3, 97, 131)
    maps = []
    for stage, x in enumerate(model.backbone(images)):
        centred = x - x.mean(1, keepdim=True)
        scale = theirs[f"backbone.norm{stage}.weight"][:, None, None] / (centred.square().mean(1, True) + 1e-5).sqrt()
        maps.append(centred * scale + theirs[f"backbone.norm{stage}.bias"][:, None, None])
    sizes = {"hidden_size": HEAD.channels, "auxiliary_channels": HEAD.auxiliary_channels, "num_labels": 7}
    config = UperNetConfig(**sizes)
    found = model(images)
    assert relative_error(found.logits, peer(UperNetHead(config, TINY.widths), theirs, "decode_head.")(maps)) < 1e-5
    auxiliary = peer(UperNetFCNHead(config, TINY.widths), theirs, "auxiliary_head.")
    assert relative_error(found.auxiliary, auxiliary(maps)) < 1e-5


def test_names_are_those_of_the_data_set(tmp_path: Path) -> None:
    """Mmsegmentation spells two classes of ADE20K otherwise than the data set, whose masks are matched by name."""
    said = [f"thing {i}" for i in range(150)]
    said[7], said[89] = "bed ", "television receiver"
    model = davit.load(saved(file_of(150), tmp_path / "s.pth", CLASSES=said, PALETTE=[[120, 120, 120]] * 150), window=7)
    assert isinstance(model, Segmenter)
    assert (model.classes[7], model.classes[89], model.classes[149]) == ("bed", "television", "thing 149")


def changed(**names: Tensor | None) -> dict[str, Tensor]:
    state = file_of() | {name.replace("__", "."): value for name, value in names.items()}
    return {name: value for name, value in state.items() if value is not None}


def with_pools(state: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    kept = {name: value for name, value in state.items() if "psp_modules" not in name}
    pools = {name: value for name, value in state.items() if "psp_modules" in name and int(name.split(".")[2]) < count}
    return kept | pools


WRONG = {
    "pools": (lambda: with_pools(file_of(), 3), "pools to 3 grids.*only the official 1, 2, 3, 6"),
    "missing": (
        lambda: changed(decode_head__fpn_convs__1__bn__running_var=None),
        r"missing: head\.outputs\.1\.norm\.running_var",
    ),
    "no auxiliary head": (
        lambda: {name: value for name, value in file_of().items() if not name.startswith("auxiliary_head.")},
        r"auxiliary\.conv\.conv\.weight \(our name\) is missing",
    ),
    "shape": (
        lambda: changed(auxiliary_head__conv_seg__weight=torch.ones(5, 20, 1, 1)),
        r"auxiliary\.classifier\.weight .*\(5, 20, 1, 1\), wanted \(7, 20, 1, 1\)",
    ),
    "another head": (lambda: changed(decode_head__align__conv__bias=torch.ones(1)), r"1 of .*decode_head\.align\.conv"),
    "another leaf": (lambda: changed(decode_head__conv_seg__running_mean=torch.ones(7)), r"classifier\.running_mean"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_other_models_are_refused_with_the_tensor_that_tells(case: str, tmp_path: Path) -> None:
    build, message = WRONG[case]
    refused(build(), message, tmp_path)


def test_another_decoder_still_gives_its_backbone(tmp_path: Path) -> None:
    state = {name: value for name, value in file_of().items() if name.startswith("backbone.")}
    weights = read(saved(state | {"decode_head.linear_c1.weight": torch.ones(1)}, tmp_path / "s.pth"), window=7)
    assert (weights.header.kind, weights.left) == ("dense", ("decode_head.linear_c1.weight",))
