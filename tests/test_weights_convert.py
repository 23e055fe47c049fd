"""The tables: to ours and back to the bit, every format recognised, nothing lost and nothing unknown let through."""

import re
from collections.abc import Callable

import pytest
import timm
import torch
from timm.models.davit import checkpoint_filter_fn
from torch import Tensor

from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.weights.convert.florence2 import FLORENCE2, FLORENCE2_NATIVE, FLORENCE_INTERNAL
from davit.weights.convert.infer import choose, read_shapes
from davit.weights.convert.mmpretrain import MMPRETRAIN
from davit.weights.convert.official import OFFICIAL, OFFICIAL_DENSE
from davit.weights.convert.recognise import locate
from davit.weights.convert.rename import Format
from davit.weights.convert.timm import TIMM, TIMM_FEATURES, TIMM_NAMED, TIMM_NAMED_FEATURES
from foreign import DEPTHS, HEADS, WIDTHS, randomise, relative_error

ALL = [
    OFFICIAL, OFFICIAL_DENSE, FLORENCE_INTERNAL, FLORENCE2, FLORENCE2_NATIVE,
    TIMM, TIMM_FEATURES, TIMM_NAMED, TIMM_NAMED_FEATURES, MMPRETRAIN,
]  # fmt: skip
BUILDERS = {
    "classifier": lambda c: Classifier(ClassifierConfig(backbone=c, num_classes=10)),
    "backbone": DaViT,
    "dense": DenseBackbone,
}
CASES = [(format, kind) for format in ALL for kind in format.kinds]
TWICE = DaViTConfig(widths=WIDTHS, depths=DEPTHS)


def ours(kind: str, config: DaViTConfig = TWICE, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return randomise(BUILDERS[kind](config)).to(dtype).state_dict()


def named(case: object) -> str:
    return case.name if isinstance(case, Format) else str(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("format", "kind"), CASES, ids=named)
def test_round_trip_is_equal_to_the_bit(format: Format, kind: str, dtype: torch.dtype) -> None:
    state = ours(kind, dtype=dtype)
    theirs = format.from_ours(state)
    assert len(theirs) == len(state)
    found = locate(theirs)
    assert found.format is format
    assert found.left == ()
    back = format.to_ours(found.tensors)
    assert set(back) == set(state)
    assert all(torch.equal(back[key], value) and back[key].dtype == dtype for key, value in state.items())
    again = format.from_ours(back)
    assert set(again) == set(theirs)
    assert all(torch.equal(again[key], value) for key, value in theirs.items())


# One dual block's names in each format, from the published files.
SPELLINGS = {
    OFFICIAL: "main_blocks.2.1.0.cpe.0.proj main_blocks.2.1.1.attn.qkv main_blocks.2.1.1.cpe.1.proj "
    "main_blocks.2.1.0.mlp.fc2 patch_embeds.0.norm patch_embeds.3.proj norms head",
    FLORENCE2: "blocks.2.1.spatial_block.conv1.fn.dw blocks.2.1.spatial_block.window_attn.norm "
    "blocks.2.1.channel_block.channel_attn.fn.qkv blocks.2.1.channel_block.ffn.fn.net.fc1 "
    "blocks.2.1.channel_block.ffn.norm convs.3.proj convs.0.norm",
    FLORENCE2_NATIVE: "blocks.2.1.spatial_block.conv1 blocks.2.1.spatial_block.norm1 "
    "blocks.2.1.channel_block.channel_attn.qkv blocks.2.1.channel_block.ffn.fc1 convs.3.conv convs.0.norm",
    TIMM: "stages.2.blocks.1.0.cpe1.proj stages.2.blocks.1.1.attn.qkv stages.2.downsample.conv stem.conv stem.norm "
    "head.norm head.fc",
    TIMM_NAMED_FEATURES: "stages_2.blocks.1.spatial_block.cpe2.proj stages_3.downsample.norm",
    MMPRETRAIN: "backbone.stages.2.blocks.1.spatial_block.attn.w_msa.qkv head.fc backbone.norm3 "
    "backbone.stages.2.blocks.1.channel_block.attn.qkv backbone.stages.2.blocks.1.channel_block.ffn.layers.0.0 "
    "backbone.stages.2.blocks.1.channel_block.ffn.layers.1 backbone.stages.0.downsample.projection "
    "backbone.patch_embed.projection",
}  # fmt: skip


@pytest.mark.parametrize("format", SPELLINGS, ids=named)
def test_spelling(format: Format) -> None:
    modules = {key.rpartition(".")[0] for key in format.from_ours(ours(format.kinds[0]))}
    assert set(SPELLINGS[format].split()) <= modules


@pytest.mark.parametrize("format", [OFFICIAL, FLORENCE2], ids=named)
def test_timm_reads_our_export(format: Format) -> None:
    """Timm's own filter knows the authors' and Microsoft's spelling: an independent check of both tables."""
    florence = format is FLORENCE2
    config = TWICE.override(merge_kernel=3, window=12, channel_scale="tokens") if florence else TWICE
    model = randomise(BUILDERS[format.kinds[0]](config))
    prefix = "vision_tower." if florence else ""
    theirs = {prefix + key: value for key, value in format.from_ours(model.state_dict()).items()}
    options = {"embed_dims": WIDTHS, "depths": DEPTHS, "num_heads": HEADS, "num_classes": 0 if florence else 10}
    if florence:
        options |= {"window_size": 12, "down_kernel_size": 3, "channel_attn_v2": True, "named_blocks": True}
    peer = timm.create_model("davit_tiny", **options).eval()
    missing, unexpected = peer.load_state_dict(checkpoint_filter_fn(theirs, peer), strict=False)
    assert not unexpected
    assert all("head.norm" in key for key in missing) if florence else not missing
    images = torch.randn(1, 3, 61, 90)
    with torch.no_grad():
        maps = peer.forward_intermediates(images, intermediates_only=True)
        backbone = model if florence else model.backbone
        for found, wanted in zip(backbone(images), maps, strict=True):
            assert relative_error(found, wanted) < 1e-5


def add(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("format", "prefix", "others"),
    [
        (FLORENCE2, "vision_tower.", ["language_model.lm_head.weight", "image_projection"]),
        (
            FLORENCE2,
            "image_encoder.",
            ["image_encoder.norms.weight", "image_encoder.norms.bias", "lang.x"],
        ),
        (FLORENCE2, "backbone.", ["sem_seg_head.predictor.weight"]),
        (FLORENCE2, "module.vision_tower.", ["module.language_model.lm_head.weight"]),
        (FLORENCE2_NATIVE, "model.vision_tower.", ["model.multi_modal_projector.image_projection.weight"]),
        (OFFICIAL_DENSE, "backbone.", ["neck.fpn_convs.0.conv.weight", "roi_head.bbox_head.fc_cls.weight"]),
        (OFFICIAL, "module.", []),
        (TIMM_NAMED, "", ["head.norm.weight", "head.norm.bias"]),
        (TIMM, "model.", ["model.head.norm.weight", "model.head.norm.bias"]),
        (MMPRETRAIN, "module.", ["module.backbone.norm3.weight"]),
    ],
    ids=named,
)
def test_inside_larger_models(format: Format, prefix: str, others: list[str]) -> None:
    kind = format.kinds[-1]
    theirs = add(prefix)(format.from_ours(ours(kind)))
    found = locate({**theirs, **{key: torch.ones(3) for key in others}})
    assert found.format is format
    assert sorted(found.left) == sorted(others)
    assert set(format.to_ours(found.tensors)) == set(ours(kind))


def test_mmpretrain_tower_alone() -> None:
    state = ours("backbone")
    theirs = {key.removeprefix("backbone."): value for key, value in MMPRETRAIN.from_ours(state).items()}
    found = locate({**theirs, "norm3.weight": torch.ones(128), "norm3.bias": torch.ones(128)})
    assert found.left == ("norm3.weight", "norm3.bias")
    assert set(MMPRETRAIN.to_ours(found.tensors)) == set(state)


def test_unknown_tensors_are_counted_and_named() -> None:
    theirs = TIMM.from_ours(ours("classifier"))
    theirs |= {f"stages.0.blocks.0.0.extra{i}.weight": torch.ones(1) for i in range(7)}
    found = locate(theirs)
    wanted = re.escape("7 of") + ".*extra0.*extra4.* and 2 more"
    with pytest.raises(ValueError, match=wanted):
        found.format.to_ours(found.tensors)
    with pytest.raises(ValueError, match=r"1 of .*relative_position_bias"):
        TIMM.to_ours({"stages.0.blocks.0.0.attn.relative_position_bias": torch.ones(1)})
    with pytest.raises(ValueError, match="without a place"):
        OFFICIAL.from_ours(ours("dense"))


def test_packed_projection_that_is_none() -> None:
    with pytest.raises(ValueError, match="packs query, key and value"):
        TIMM.to_ours({"stages.0.blocks.0.1.attn.qkv.weight": torch.ones(7, 3)})


def test_no_davit_at_all() -> None:
    with pytest.raises(ValueError, match=r"none of the 1 tensors tells.*layer1\.conv\.weight"):
        locate({"layer1.conv.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"davit\.save"):
        locate(ours("classifier"))
    with pytest.raises(ValueError, match="birder"):
        locate({"body.stage1.0.x.weight": torch.ones(1)})


def test_two_towers() -> None:
    theirs = OFFICIAL.from_ours(ours("backbone"))
    with pytest.raises(ValueError, match=r"2 DaViT towers.*student\..*teacher\."):
        locate({**add("student.")(theirs), **add("teacher.")(theirs)})


def shapes_of(config: DaViTConfig):
    with torch.device("meta"):
        return read_shapes(DaViT(config).state_dict())


def test_choice_of_the_variant() -> None:
    from davit.models.variants import VARIANTS

    def choice(name: str, format: Format, **fields: object) -> str | None:
        return choose(shapes_of(VARIANTS[name]), format, None, fields)[1]

    for name in ("davit_tiny", "davit_small", "davit_base", "davit_huge", "davit_giant"):
        assert choice(name, OFFICIAL) == name
        assert choice(name, TIMM) == name
    for name in ("davit_base_florence2", "davit_huge_florence2"):
        assert choice(name, FLORENCE2) == name
        assert choice(name, TIMM_NAMED) == name
    with pytest.raises(ValueError, match=r'variant="davit_large" .*variant="davit_large_384" \(window 12'):
        choice("davit_large", OFFICIAL)
    with pytest.raises(ValueError, match=r"window=7, channel_scale=\"tokens\""):
        choice("davit_base", FLORENCE2)
    with pytest.raises(ValueError, match="cannot be told"):
        choice("davit_huge_florence2", FLORENCE_INTERNAL)
    assert choice("davit_large", OFFICIAL, window=12) is None


def test_what_the_user_says_must_fit() -> None:
    shapes = shapes_of(TWICE)
    config, _ = choose(shapes, TIMM, None, {"window": 5})
    assert config == TWICE.override(window=5)
    with pytest.raises(ValueError, match=r"widths \(32, 64, 96, 128\) where it has \(96"):
        choose(shapes, TIMM, "davit_tiny", {})
    with pytest.raises(ValueError, match=r"does not exist in the timm format"):
        choose(shapes, TIMM, None, {"window": 7, "channel_scale": "tokens"})
    with pytest.raises(ValueError, match=r"unknown variant 'davit_tyni'.*davit_tiny"):
        choose(shapes, TIMM, "davit_tyni", {})
    with pytest.raises(ValueError, match="merge_kernel 2 where it has 3"):
        choose(shapes, TIMM, None, {"window": 7, "merge_kernel": 3})
    assert choose(shapes, FLORENCE2, None, {"window": 7, "channel_scale": "channels"})[0].channel_scale == "channels"


def test_missing_blocks() -> None:
    state = {key: value for key, value in ours("backbone").items() if not key.startswith("stages.2.blocks.0.")}
    with pytest.raises(ValueError, match="some are missing"):
        read_shapes(state)
