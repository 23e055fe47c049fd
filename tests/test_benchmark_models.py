"""`davit benchmark models`: turns, sums, memory, and what the command says."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from davit.cli import main
from davit.inference import timing
from davit.inference.backends import choosing
from davit.inference.backends.native.build import NativeError
from davit.inference.backends.onnx_export import export_onnx
from davit.inference.timing import LEAST_ROUNDS, Memory, Round, measure_memory, multiply_adds, summarise, take_turns
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.segmenter_config import SegmenterConfig, UPerNetHead
from davit.models.upernet import Segmenter
from davit.preprocessing import Preprocessing
from davit.weights.save import save
from small_detectors import TINY, detector

CPU = torch.device("cpu")
QUICK = ["--seconds", "0", "--no-memory"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A yardstick that takes no second on a busy machine."""
    monkeypatch.setattr(timing, "SIDE", 256)


def classifier(config: DaViTConfig = TINY) -> Classifier:
    model = Classifier(ClassifierConfig(backbone=config, num_classes=3)).eval()
    model.preprocessing = Preprocessing.imagenet(64)
    return model


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    save(classifier(), tmp_path / "tiny.safetensors")
    return str(tmp_path / "tiny.safetensors")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["benchmark", "models", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_candidates_take_turns_and_the_first_call_does_not_count() -> None:
    log: list[str] = []

    def candidate(name: str, seconds: float):
        def call() -> None:
            time.sleep(seconds if name in log else 1.0)  # what comes first is slow, as with real ones
            log.append(name)

        return call

    rounds = take_turns({"slow": candidate("slow", 0.06), "quick": candidate("quick", 0.03)}, CPU, seconds=0)
    assert len(rounds) == LEAST_ROUNDS
    turns = [(name, len(one.turns[name])) for one in rounds for name in ("slow", "quick")]
    assert log == ["slow", "quick"] + [name for name, count in turns for _ in range(count)]
    assert all(sum(seconds) >= 0.1 for one in rounds for seconds in one.turns.values())
    assert max(seconds for one in rounds for calls in one.turns.values() for seconds in calls) < 0.9
    speed = summarise(rounds, "quick", "slow", 1, None)
    assert 1.4 < speed.times_first.median < 2.8
    assert speed.share_of_peak is None


def test_longer_measuring_takes_more_rounds() -> None:
    started = time.perf_counter()
    rounds = take_turns({"a": lambda: time.sleep(0.01)}, CPU, seconds=1)
    assert time.perf_counter() - started >= 1
    assert len(rounds) > LEAST_ROUNDS


def test_ratios_and_shares_are_those_inside_a_round() -> None:
    """The machine is at half speed in the second round: ratio and share stay, and only rates and latencies vary."""
    product = 2 * 256**3 / 100e9  # 100 GFLOP/s
    rounds = [
        Round(product=product, turns={"a": [0.4], "b": [0.1, 0.3]}),
        Round(product=2 * product, turns={"a": [0.8], "b": [0.2, 0.6]}),
        Round(product=product, turns={"a": [0.6], "b": [0.2]}),
    ]
    speed = summarise(rounds, "b", "a", 8, 500_000_000)
    assert (speed.times_first.median, speed.times_first.least, speed.times_first.most) == pytest.approx((2, 2, 3))
    assert (speed.images_per_second.least, speed.images_per_second.most) == pytest.approx((20, 40))
    # 8 images of 0.5 G multiply-adds in 0.2 s: 40 GFLOP/s of 100, and of 50 at half the speed
    assert speed.share_of_peak is not None
    assert (speed.share_of_peak.least, speed.share_of_peak.most) == pytest.approx((0.4, 0.4))
    assert (speed.peak.least, speed.peak.most) == pytest.approx((50e9, 100e9))
    assert speed.milliseconds == pytest.approx({"p50": 200, "p90": 480, "p99": 588})
    assert (speed.rounds, speed.calls) == (3, 5)
    assert summarise(rounds, "a", "a", 8, None).times_first.most == 1


def test_multiply_adds_are_those_of_a_real_forward() -> None:
    head = UPerNetHead(channels=16, auxiliary_channels=8, pool_sizes=(1, 2))
    for model in (classifier(), Segmenter(SegmenterConfig(backbone=TINY, head=head, num_classes=4)).eval()):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model(torch.randn(1, 3, 50, 71))
        assert multiply_adds(model.config, 50, 71) == counter.get_total_flops() // 2
    assert multiply_adds(detector("retinanet").config, 64, 64) is None


def test_memory_is_that_of_a_process_of_its_own(checkpoint: str) -> None:
    held = torch.ones(500_000_000)  # 2 GB here must not be counted there
    images = 24
    taken = measure_memory(checkpoint, "eager", CPU, images, 224, 224)
    if taken is None:
        pytest.skip("this system does not tell the memory of processes")
    least = 2 * 4 * images * 56 * 56 * 32  # input and output of an operation on the first stage's map
    assert least < taken.peak - taken.opened < 40 * least
    assert 0 < taken.imported < taken.opened
    assert taken.peak < 4 * held.numel()
    assert taken.on_card is None


def test_memory_that_cannot_be_measured_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho Traceback >&2\necho ValueError: it is gone >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(timing.sys, "executable", str(failing))
    with pytest.raises(ValueError, match=r"^davit_pico by eager, 2 x 64x48: .* failed: ValueError: it is gone$"):
        measure_memory("davit_pico", "eager", CPU, 2, 64, 48)


def test_json_has_every_case_with_hardware_and_versions(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(capsys, checkpoint, "--batch", "1,2", "--sizes", "32,48x65", "--threads", "1", *QUICK)
    rows = report["results"]
    shapes = [(batch, *size) for size in ((32, 32), (48, 65)) for batch in (1, 2)]
    found = [(row["batch"], row["height"], row["width"], row["backend"]) for row in rows]
    assert found == [(*shape, backend) for shape in shapes for backend in ("eager", "native")]
    for row in rows:
        assert row["first"] == [checkpoint, "eager"]
        assert (row["times_first"]["most"] == row["times_first"]["least"] == 1) == (row["backend"] == "eager")
        assert 0 < row["milliseconds"]["p50"] <= row["milliseconds"]["p90"] <= row["milliseconds"]["p99"]
        rate = row["images_per_second"]
        assert rate["least"] <= rate["median"] <= rate["most"]
        share = 2 * row["macs"] * rate["median"] / row["peak"]["median"]
        assert row["share_of_peak"]["median"] == pytest.approx(share, rel=0.9)
        assert row["memory"] is None
        assert row["rounds"] >= LEAST_ROUNDS
    assert report["environment"]["threads"] == 1
    assert {"torch", "davit", "processor", "cpus"} <= set(report["environment"])


@pytest.mark.slow
def test_an_export_is_compared_with_its_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # little in it: exporting takes as long as there are operations
    bare = DaViTConfig(widths=(32, 32, 64, 64), depths=(1, 1, 1, 1), window=4, mlp=False, conv_position=False)
    checkpoint, file = str(tmp_path / "bare.safetensors"), str(tmp_path / "bare.onnx")
    save(model := classifier(bare), checkpoint)
    export_onnx(model, tmp_path / "bare.onnx")
    report = run(capsys, checkpoint, "davit_pico", file, "--backends", "eager", "--batch", "1", "--sizes", "32", *QUICK)
    # the export stands with its checkpoint, and the other architecture by itself
    firsts = [(row["model"], row["backend"], row["first"]) for row in report["results"]]
    assert firsts == [
        (checkpoint, "eager", [checkpoint, "eager"]),
        (file, "onnx", [checkpoint, "eager"]),
        ("davit_pico", "eager", ["davit_pico", "eager"]),
    ]
    ratios = [row["times_first"]["median"] for row in report["results"]]
    assert ratios[0] == ratios[2] == 1 != ratios[1]
    assert "onnxruntime" in report["environment"]


def test_the_table_has_a_line_for_each_candidate(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[object, ...]] = []

    def memory(*question: object) -> Memory:
        asked.append(question)
        return Memory(imported=500_000_000, opened=600_000_000, peak=1_234_000_000)

    monkeypatch.setattr(timing, "measure_memory", memory)
    assert main(["benchmark", "models", checkpoint, "--batch", "3", "--sizes", "40x65", "--seconds", "0"]) == 0
    heading, *lines, empty, footer = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["model", "backend", "images"]
    for backend, line in zip(("eager", "native"), lines, strict=True):
        assert line.split()[:5] == [checkpoint, backend, "3", "x", "40x65"]
        assert " 1,234 MB " in line
        assert f"{multiply_adds(classifier().config, 40, 65) / 1e9:.2f}" in line
        assert line.isprintable()
    assert asked == [(checkpoint, backend, CPU, 3, 40, 65) for backend in ("eager", "native")]
    assert not empty
    assert f"PyTorch {torch.__version__}" in footer


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name at least one model"),
        (["davit_tinny"], "davit_tiny"),
        (["nowhere.onnx"], "nowhere.onnx"),
        (["davit_pico", "--backends", "nativ"], "Did you mean 'native'"),
        (["davit_pico", "--backends", "auto"], "Choices: native, eager"),
        (["davit_pico", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["davit_pico", "--batch", "1;8"], "--batch takes whole numbers"),
        (["davit_pico", "--sizes", "224,0"], "--sizes must be at least 1, got 0"),
        (["davit_pico", "--sizes", "224x-3"], "--sizes must be at least 1, got 224x-3"),
        (["davit_pico", "--sizes", "big"], "--sizes takes sides in pixels"),
        (["davit_pico", "--seconds", "-1"], "--seconds must be at least 0"),
        (["davit_pico", "--threads", "0"], "--threads must be at least 1"),
        (["davit_pico", "--device", "gpu9"], "device 'gpu9' cannot be used"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "models", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_backend_that_cannot_be_had_is_one_line(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = str(tmp_path / "odd.safetensors")
    save(classifier(DaViTConfig(widths=(32, 64, 96, 128), depths=(1, 1, 1, 1), head_width=16)), odd)
    assert main(["benchmark", "models", odd]) == 2
    err = capsys.readouterr().err
    assert odd in err
    assert "head_width=16" in err
    assert err.count("\n") == 1

    def refuse(*_: object) -> None:
        raise NativeError("there is no C++ compiler here")

    monkeypatch.setattr(choosing, "NativeBackend", refuse)
    assert main(["benchmark", "models", checkpoint]) == 2
    assert f"{checkpoint}: there is no C++ compiler here" in capsys.readouterr().err


def test_too_large_a_batch_is_one_line(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from davit.inference.backends.native import engine

    monkeypatch.setattr(engine, "available_memory", lambda: 1.0)
    assert main(["benchmark", "models", checkpoint, "--backends", "native", *QUICK]) == 2
    err = capsys.readouterr().err
    assert "not enough memory for 1 x 64x64" in err
    assert err.count("\n") == 1
