"""The small comparison of attention layouts: equal models, fair runs, honest statistics."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from davit.data.transforms import Augmentation
from davit.models.blocks import AttentionBlock
from davit.structures import Batch
from davit.tasks.classification import ClassificationConfig, ClassificationTask
from davit.train.distributed import World
from davit.train.step import Stepper
from runs import colour_folder

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from ablation import main  # noqa: E402
from ablation_models import BARE, LAYOUTS, MODELS, ParallelBlock, build, multiply_adds, shape  # noqa: E402
from ablation_statistics import holm, paired_difference  # noqa: E402
from ablation_summary import COMPARISONS, append_run, read_runs, summarise, table  # noqa: E402
from ablation_training import Settings, decode, make_recipe, normalise, order_of, train, vary  # noqa: E402

QUICK = Settings(optimizer="muon", rate=4e-3, matrix_rate=1.0, steps=12, batch_size=8, image_size=32)


def parameters(name: str, image_size: int = 32) -> int:
    return sum(p.numel() for p in build(name, image_size, 10).parameters())


@pytest.mark.parametrize("image_size", [32, 64])
def test_all_models_have_equally_many_parameters(image_size: int) -> None:
    dual = parameters("window-channel", image_size)
    assert {name: parameters(name, image_size) / dual for name in MODELS} == {
        name: pytest.approx(1, abs=0.05) for name in MODELS
    }


@pytest.mark.parametrize("bare", ["", BARE])
def test_layouts_differ_in_attention_alone(bare: str) -> None:
    """Every layout but the parallel one has the same tensors; a bare one lacks the 16 convolutions."""
    shapes = {name: sorted(p.shape for p in build(name + bare, 32, 10).parameters()) for name in LAYOUTS}
    parallel = shapes.pop("parallel")
    assert all(found == shapes["window"] for found in shapes.values())
    assert sum(map(np.prod, parallel)) == pytest.approx(sum(map(np.prod, shapes["window"])), rel=0.01)
    kinds = {
        name: [b.attn.__class__.__name__ for b in build(name + bare, 32, 10).modules() if isinstance(b, AttentionBlock)]
        for name in shapes
    }
    assert kinds == {
        "window": ["WindowAttention"] * 8,
        "channel": ["ChannelAttention"] * 8,
        "window-channel": ["WindowAttention", "ChannelAttention"] * 4,
        "channel-window": ["ChannelAttention", "WindowAttention"] * 4,
    }
    convolutions = [m for m in build("window" + bare, 32, 10).modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(convolutions) == (0 if bare else 16)


def plain_parallel(block: ParallelBlock, x: Tensor, heads: int, window: int) -> Tensor:
    """The parallel block in loops: one image, one window, one head at a time."""

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:  # (tokens, features)
        return torch.softmax(q @ k.T * scale, -1) @ v

    def convolve(layer: nn.Module, x: Tensor) -> Tensor:
        kernel, bias = layer.dwconv.weight, layer.dwconv.bias
        return x + F.conv2d(x.permute(0, 3, 1, 2), kernel, bias, padding=1, groups=len(kernel)).permute(0, 2, 3, 1)

    x = convolve(block.cpe_attn, x)
    y = F.layer_norm(x, x.shape[-1:], block.norm_attn.weight, block.norm_attn.bias)
    images, height, width, channels = y.shape
    each, summed = channels // heads, torch.zeros_like(y)
    scale = each**-0.5
    for image in range(images):
        q, k, v = F.linear(y[image], block.channel.qkv.weight, block.channel.qkv.bias).flatten(0, 1).split(channels, -1)
        mixed = [attend(q[:, c].T, k[:, c].T, v[:, c].T, scale).T for c in torch.arange(channels).split(each)]
        summed[image] += block.channel.proj(torch.cat(mixed, -1)).view(height, width, channels)
        padded = F.pad(y[image], (0, 0, 0, -width % window, 0, -height % window))
        local = torch.zeros_like(padded)
        for top in range(0, padded.shape[0], window):
            for left in range(0, padded.shape[1], window):
                cut = padded[top : top + window, left : left + window].flatten(0, 1)
                q, k, v = block.window.qkv(cut).split(channels, -1)
                mixed = [attend(q[:, c], k[:, c], v[:, c], scale) for c in torch.arange(channels).split(each)]
                result = block.window.proj(torch.cat(mixed, -1)).view(window, window, channels)
                local[top : top + window, left : left + window] = result
        summed[image] += local[:height, :width]
    x = convolve(block.cpe_mlp, x + summed)
    y = F.layer_norm(x, x.shape[-1:], block.norm_mlp.weight, block.norm_mlp.bias)
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(y)))


@pytest.mark.parametrize("size", [(4, 4), (5, 3)])
def test_the_parallel_block_against_a_plain_transcription(size: tuple[int, int]) -> None:
    block = ParallelBlock(shape(32), 40).double().eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, *size, 40, dtype=torch.float64)
    assert torch.allclose(block(x), plain_parallel(block, x, heads=2, window=2), atol=1e-10)


def test_multiply_adds_are_those_of_the_librarys_formula() -> None:
    from davit.models.complexity import count_macs

    assert multiply_adds(build("window-channel", 64, 10), 64) == pytest.approx(
        count_macs(shape(64), 64, 64, 10), rel=0.01
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_two_classes(name: str) -> None:
    """Bright and dark pictures of noise, which no fresh model tells apart in the right way each time."""
    torch.manual_seed(1)
    model = build(name, 32, 2)
    recipe = make_recipe(QUICK, "", 0)
    task = ClassificationTask(ClassificationConfig(label_smoothing=0, mix_probability=0), 2)
    stepper = Stepper(recipe, model, task, World(), 16, torch.float32)
    targets = torch.arange(16) % 2
    losses = []
    for step in range(12):
        images = torch.randn(16, 3, 32, 32) + (targets * 2.0 - 1)[:, None, None, None]
        loss, finite = stepper.gradients(iter([Batch(images=images, targets=targets)]), step, 4e-3, frozen=False)
        assert finite
        stepper.update()
        losses.append(loss)
    assert losses[-1] < 0.3 < losses[0]


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    colour_folder(tmp_path / "colours" / "train")
    colour_folder(tmp_path / "colours" / "val", images=2)
    return tmp_path / "colours"


def test_training_is_a_function_of_the_seed_and_learns(colours: Path) -> None:
    recipe = make_recipe(QUICK, str(colours), 3)
    pixels = decode(recipe)
    first, again = (train("window-channel", pixels, recipe) for _ in range(2))
    assert first["top1"] == 1.0
    times = ("seconds", "cpu_seconds")
    assert {k: v for k, v in first.items() if k not in times} == {k: v for k, v in again.items() if k not in times}
    other = train("window-channel", pixels, make_recipe(QUICK, str(colours), 4))
    assert other["validation_loss"] != first["validation_loss"]


def test_every_model_of_a_seed_sees_the_same_samples_and_all_of_them() -> None:
    order = order_of(25, 10, 5)
    assert torch.equal(order, order_of(25, 10, 5))
    assert not torch.equal(order, order_of(25, 10, 6))
    assert [sorted(order[i : i + 10].tolist()) for i in (0, 10)] == [list(range(10))] * 2


def test_pictures_are_shifted_inside_a_reflected_border_and_mirrored() -> None:
    """Each is a shift, perhaps mirrored, of numpy's reflection; all shifts and both ways come up."""
    pixels = torch.randint(0, 256, (400, 3, 6, 6), dtype=torch.uint8)
    padded = torch.from_numpy(np.pad(pixels.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect"))
    augmentation = Augmentation(crop_scale=(1, 1), shift_crop=1, flip=0.5, rand_augment="", erasing=0)
    varied = vary(padded, augmentation, torch.Generator().manual_seed(0))
    found = set()
    for picture, whole in zip(varied, padded, strict=True):
        cuts = {
            (top, left, mirrored): whole[:, top : top + 6, left : left + 6].flip([-1] * mirrored)
            for top in range(3)
            for left in range(3)
            for mirrored in (0, 1)
        }
        matching = [key for key, cut in cuts.items() if torch.equal(cut, picture)]
        assert len(matching) == 1
        found.add(matching[0])
    assert len(found) == 18


def test_decoded_pixels_are_what_the_library_makes_of_a_file(colours: Path) -> None:
    from davit.data.images import find_images
    from davit.preprocessing import Preprocessing

    pixels = decode(make_recipe(QUICK, str(colours), 0))
    images = find_images(str(colours)).open("val")
    expected = torch.stack([Preprocessing.imagenet(32, crop=1.0)(images[i][0]) for i in range(len(images))])
    assert torch.allclose(normalise(pixels.validation), expected, atol=1e-6)
    assert pixels.validation_labels.tolist() == [images[i][1] for i in range(len(images))]
    assert pixels.train.shape == (24, 3, 40, 40)


scores = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6)


@given(pairs=scores)
@settings(deadline=None)
def test_intervals_are_scipys(pairs: list[tuple[float, float]]) -> None:
    first, second = zip(*pairs, strict=True)
    found = paired_difference(first, second)
    each = np.subtract(first, second)
    if np.ptp(each) < 1e-6:  # scipy divides by nothing
        return
    expected = stats.ttest_rel(first, second)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert found.larger_than_noise == (interval.low > 0 or interval.high < 0)


def test_a_known_interval_and_one_seed() -> None:
    """Differences 1, 2 and 3: mean 2, deviation 1, and the table's t of 4.303 for two degrees of freedom."""
    found = paired_difference([2, 4, 6], [1, 2, 3])
    assert (found.low, found.high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    assert not found.larger_than_noise
    assert not paired_difference([1.0], [0.0]).larger_than_noise
    with pytest.raises(ValueError, match="no seeds"):
        paired_difference([], [])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def fake(model: str, seed: int, top1: float, **changes: object) -> dict:
    shared = {
        "data": "d",
        "steps": 1,
        "optimizer": "muon",
        "batch_size": 1,
        "image_size": 32,
        "rate": 1e-3,
        "matrix_rate": 1.0,
    }
    scored = {"top1": top1, "validation_loss": 1 - top1, "train_loss": 0.0, "parameters": 1, "multiply_adds": 1}
    return {**shared, "model": model, "seed": seed, "pilot": False, **scored, "cpu_seconds": 1.0, **changes}


def test_a_summary_pairs_seeds_and_claims_only_what_is_larger_than_noise() -> None:
    runs = [fake("window-channel", seed, 0.5 + 0.1 * seed) for seed in (0, 1, 2)]
    runs += [fake("window", seed, 0.4 + 0.1 * seed + 0.001 * seed) for seed in (2, 0, 1)]  # better by 0.1 each time
    runs += [fake("vit", seed, 0.9 - 0.3 * seed) for seed in (0, 1, 2)]
    runs += [fake("swin", 7, 0.1), fake("window", 0, 0.9, pilot=True)]
    (summary,) = summarise(runs)
    rows = {(row["first"], row["second"]): row for row in summary["differences"]["top1"]}
    assert rows["window-channel", "window"]["mean"] == pytest.approx(0.099)
    assert rows["window-channel", "window"]["larger_than_noise"]
    assert not rows["window-channel", "vit"]["larger_than_noise"]
    assert ("window-channel", "swin") not in rows  # they share no seed
    text = table(summary)
    assert "| window-channel less window | +10.0, +9.9, +9.8 | +9.9 |" in text
    with pytest.raises(ValueError, match="two runs of seed 0"):
        summarise([*runs, fake("window", 0, 0.1, rate=1.0)])


def test_every_comparison_is_between_models_there_are() -> None:
    assert {name for pair in COMPARISONS for name in pair} <= set(MODELS)


def test_finished_runs_are_skipped_and_torn_ones_done_again(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, record, drawn = (tmp_path / name for name in ("runs.jsonl", "record.json", "plot.png"))
    quick = [
        "--data",
        str(colours),
        "--runs",
        str(runs),
        "--steps",
        "2",
        "--batch-size",
        "8",
        "--only",
        "window",
        "vit",
    ]
    main([*quick, "--seeds", "0"])
    first = runs.read_text()
    assert [json.loads(line)["model"] for line in first.splitlines()] == ["window", "vit"]
    runs.write_text(first[:-40])  # the power went
    main([*quick, "--seeds", "0", "1"])
    assert "1 of 4 runs are in" in capsys.readouterr().out
    assert [(r["seed"], r["model"]) for r in read_runs(runs)] == [(0, "window"), (0, "vit"), (1, "window"), (1, "vit")]
    assert read_runs(runs)[1]["validation_loss"] == json.loads(first.splitlines()[1])["validation_loss"]
    main([*quick, "--seeds", "0", "1"])
    assert "4 of 4 runs are in" in capsys.readouterr().out
    main([*quick[:-2], "vit", "--seeds", "9", "--pilot", "--rate", "1e-3", "2e-3x10"])
    main(["--runs", str(runs), "--summary", "--out", str(record), "--plot", str(drawn)])
    shown = capsys.readouterr().out
    assert "| window |" in shown
    assert "pilot, colours, 2 steps, seed 9, vit: 0.001 x 1: " in shown
    written = json.loads(record.read_text())
    assert written["environment"]["torch"] == torch.__version__
    assert written["summaries"][0]["models"]["vit"]["seeds"] == [0, 1]
    assert [trial["rate"] for trial in written["pilots"][0]["scores"]] == [1e-3, 2e-3]
    assert drawn.stat().st_size > 10_000


def test_what_cannot_be_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(tmp_path)]
    for arguments, message in (
        ([], "say which images"),
        ([*data, "--only", "resnet"], "no model resnet"),
        ([*data, "--rate", "1", "2"], "runs that count have one rate"),
        ([*data, "--optimizer", "adamw"], "give --rate for adamw"),
        (["--data", str(tmp_path / "none")], "none"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["--runs", str(tmp_path / "runs.jsonl"), *arguments])
        assert message in capsys.readouterr().err


def test_rows_go_on_lines_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text('{"torn": ')
    append_run(path, {"model": "vit"})
    assert read_runs(path) == [{"model": "vit"}]
