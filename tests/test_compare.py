"""`davit compare`: counts against print and closed forms, growth, and what the command says and writes."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from davit.cli import main
from davit.explain.plane import Mark, Panel, axis_ticks, figure, place_names
from davit.inference.growth import closed_forms, fit_exponent, grow
from davit.inference.peers import count_peer, timm_name
from davit.inference.side_by_side import Entry, Models, measure_memory
from davit.models.classifier import Classifier
from davit.models.complexity import attention_growth, count_macs
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.variants import variant
from davit.preprocessing import Preprocessing
from davit.weights.published import CLASSIFIERS, nearest_peers, published
from davit.weights.save import save
from small_detectors import detector

QUICK = ["--seconds", "0", "--no-memory"]


@pytest.fixture
def checkpoint(tmp_path: Path, small_config: DaViTConfig) -> str:
    model = Classifier(ClassifierConfig(backbone=small_config, num_classes=7))
    model.preprocessing = Preprocessing.imagenet(64)
    path = tmp_path / "mine.safetensors"
    save(model, path)
    return str(path)


@pytest.mark.parametrize(
    ("short", "parameters", "macs"),
    [  # exact counts, which agree with what the papers round
        ("swin_tiny", 28_288_354, 4.5e9),
        ("swinv2_tiny", 28_347_154, 5.9e9),
        ("focalnet_tiny", 28_647_928, 4.5e9),
        ("pvt_v2_b2", 25_362_856, 4.0e9),
        ("mixer_b16", 59_880_472, 12.7e9),
        ("vit_small", 22_050_664, 4.6e9),
        ("convnext_tiny", 28_589_128, 4.5e9),
    ],
)
def test_counts_of_peers_are_the_printed_ones(short: str, parameters: int, macs: float) -> None:
    name = timm_name(short)
    printed = published(name)
    assert printed is not None
    found = count_peer(name, printed.size, printed.size)
    assert found[0] == parameters
    assert found[0] / 1e6 == pytest.approx(printed.parameters, rel=0.03)
    assert found[1] == pytest.approx(macs, rel=0.02)
    assert printed.macs is None or found[1] / 1e9 == pytest.approx(printed.macs, rel=0.02)


@pytest.mark.parametrize("size", [(224, 224), (97, 131)])
def test_davit_is_counted_like_its_closed_form(size: tuple[int, int]) -> None:
    models = Models(torch.device("cpu"))
    entry = Entry(model="davit_pico", engine="eager")
    models.open(entry, size)
    assert models.count(entry, size).macs == count_macs(variant("davit_pico"), *size, 1000)


@pytest.mark.parametrize("side", [64, 160])
def test_vit_is_counted_like_full_attention(side: int) -> None:
    tokens, width = (side // 16) ** 2 + 1, 192
    block = attention_growth(tokens, width, 7, 32)["global"] + 8 * tokens * width**2
    expected = 12 * block + (tokens - 1) * 768 * width + 1000 * width
    assert count_peer("vit_tiny_patch16_224", side, side)[1] == expected


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_exponents_of_powers_are_found(exponent: float) -> None:
    growth = grow({(side, 2 * side): 3e-9 * (2 * side**2) ** exponent for side in (512, 64, 224)})
    assert growth is not None
    assert growth.pixels == (2 * 64**2, 2 * 224**2, 2 * 512**2)
    assert (growth.exponent, growth.last) == (pytest.approx(exponent), pytest.approx(exponent))
    assert grow({(64, 64): 1.0}) is None
    with pytest.raises(ValueError, match="two sizes or more"):
        fit_exponent([64.0, 64.0], [1.0, 2.0])


def test_closed_forms_grow_linearly_but_for_full_attention() -> None:
    forms = closed_forms(variant("davit_tiny"), [(side, side) for side in (448, 896, 3584)])
    exponents = {kind: growth.exponent for kind, costs in forms.items() if (growth := grow(costs))}
    assert exponents["window"] == pytest.approx(1.0)
    assert exponents["channel"] == pytest.approx(1.0)
    assert 1.95 < exponents["global"] < 2.0


def test_published_models_exist_and_name_their_source() -> None:
    for row in CLASSIFIERS:
        assert re.search(r"arXiv \d{4}\.\d{5}", row.source)
        assert 70 < row.score < 91
        if row.family == "DaViT":
            assert variant(row.model)
        elif row.in_timm:
            assert timm_name(row.model) == row.model
    families = {row.family for row in nearest_peers(28_360_168)}
    assert families == {"Swin", "SwinV2", "FocalNet", "PVTv2", "MLP-Mixer", "ViT", "ConvNeXt"}
    assert "swin_base_patch4_window7_224" in [row.model for row in nearest_peers(87_954_408)]


def test_the_result_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    peers = "vit_tiny,convnext_atto"
    assert main(["compare", "davit_pico", "--with", peers, "--sizes", "8,48x64", *QUICK, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["environment"]["timm"]
    rows = {(row["model"], row["engine"], row["height"]): row for row in report["results"]}
    assert len(rows) == 6
    assert [row["model"] for row in report["unable"]] == ["vit_tiny", "convnext_atto"]  # of less than a patch
    assert "vit_tiny_patch16_224 does not compute 8x8" in report["unable"][0]["reason"]
    assert rows["vit_tiny", "timm", 48]["rebuilt_for_size"]
    assert rows["vit_tiny", "timm", 48]["published"]["score"] == 72.2
    for engine in ("eager", "native"):
        row = rows["davit_pico", engine, 48]
        assert (row["from"], row["width"], row["published"]) == ("davit", 64, None)
        assert row["macs"] == count_macs(variant("davit_pico"), 48, 64, 1000)
        assert row["milliseconds"]["p50"] <= row["milliseconds"]["p90"] <= row["milliseconds"]["p99"]
    growth = {(row["model"], row["engine"]): row for row in report["growth"]}
    assert growth["davit_pico", "native"]["latency"]["pixels"] == [64, 48 * 64]
    assert growth["davit_pico", "native"]["macs"]["pixels"] == [64, 48 * 64, 96 * 128, 192 * 256]
    assert growth["vit_tiny", "timm"]["latency"] is None
    assert [row["model"] for row in report["published_only"]] == ["Focal-T"]


def test_a_checkpoint_in_table_page_and_plots(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a" / "comparison"
    command = ["compare", checkpoint, "--with", "convnext_tiny,resnet18", "--backends", "eager", "--sizes", "40,65x97"]
    assert main([*command, *QUICK, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count(f"{checkpoint}  eager") == 3  # two sizes, and their growth
    assert "convnext_tiny: 82.1 % top-1 at 224 px" in said
    assert re.search(r"resnet18 +timm +40x40 +11\.7 M", said)
    assert {path.name for path in out.iterdir()} == {"compare.html", "compare.json", "accuracy.png", "growth.png"}
    assert len(json.loads((out / "compare.json").read_text())["results"]) == 6
    page = (out / "compare.html").read_text()
    assert not re.findall(r"https?://|@import|url\(", page)
    for text in ("convnext_tiny", "resnet18", "82.1", "arXiv 2201.03545", "Growth with the image", "<svg"):
        assert text in page
    for name in ("accuracy.png", "growth.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 400
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20


def test_models_alone(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", checkpoint, "--with", "none", "--backends", "native", "--sizes", "48", "--out", str(tmp_path)]
    assert main([*command, *QUICK]) == 0
    said = capsys.readouterr().out
    assert "growth" not in said
    assert (tmp_path / "accuracy.png").exists()  # of Focal, which is published alone


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name at least one model"),
        (["davit_tinny"], "davit_tiny"),
        (["davit_pico", "--with", "swin_tinny"], "Did you mean 'swin_tiny'"),
        (["davit_pico", "--with", "focal_tiny"], "timm has no Focal Transformer"),
        (["davit_pico", "--sizes", "big"], "--sizes takes sides in pixels"),
        (["davit_pico", "--batch", "0"], "--batch must be at least 1"),
        (["davit_pico", "--seconds", "-1"], "--seconds must be at least 0"),
        (["davit_pico", "--backends", "nativ"], "Did you mean 'native'"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_detectors_are_not_compared_with_classifiers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "detector.safetensors"
    model = detector("retinanet")
    model.preprocessing = Preprocessing.imagenet(64)
    save(model, path)
    assert main(["compare", str(path), "--backends", "eager", *QUICK]) == 2
    assert f"{path} is no classifier" in capsys.readouterr().err


def test_memory_of_a_peer_is_more_than_its_weights() -> None:
    entry = Entry(model="vit_tiny_patch16_224", engine="timm")
    taken = measure_memory(entry, torch.device("cpu"), 2, (64, 96))
    if taken is None:
        pytest.skip("this system does not tell")
    weights = 4 * count_peer(entry.model, 64, 96)[0]
    assert weights < taken.peak - taken.imported < weights + 100_000_000


def test_names_cover_neither_points_nor_names() -> None:
    spots = [(100.0, 100.0), (104.0, 101.0), (100.0, 108.0), (196.0, 100.0)]
    found = place_names(spots, ["swin_tiny"] * 4, (0, 0, 200, 200))
    wide = 6.1 * len("swin_tiny")
    boxes = [(x - {"start": 0, "middle": wide / 2, "end": wide}[anchor], y) for x, y, anchor in found]
    for index, (left, y) in enumerate(boxes):
        assert 0 <= left <= 200 - wide
        for other, below in boxes[:index]:
            assert abs(y - below) > 10 or abs(left - other) >= wide


def test_axes_span_their_values() -> None:
    assert axis_ticks([3.0, 80.0], log=True) == [2, 5, 10, 20, 50, 100]
    assert axis_ticks([25.4, 28.9], log=True) == pytest.approx([25, 26, 27, 28, 29])
    assert axis_ticks([82.0], log=False) == [81, 82, 83]
    drawn = figure(Panel(title="a < b", across="x", up="y", marks=(Mark(name="<i>", at=(1, 1), tone="tone-a"),)))
    assert "<i>" not in drawn
    assert "a &lt; b" in drawn
