"""`davit plan`: what fits by injected and real measurements, what is remembered, and what training costs."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from davit.cli import main
from davit.cli.train import recipe_with
from davit.cli.units import parse_bytes, parse_duration, parse_flops, parse_rate
from davit.inference.planning import Demand, Measure, Option, Timing, nearest_miss, plan
from davit.inference.stopwatch import Remembering, Stopwatch, options_for
from davit.models.complexity import count_macs
from davit.models.variants import variant
from davit.train.device_memory import GIB
from davit.train.dry_run import DryRun, report
from davit.train.recipe import Recipe
from davit.train.training_cost import UTILISATION, Hardware, needed, training_cost

PEAK = 1e10  # multiply-adds a second of the pretended machine
SCORES = {"a": None, "b": 80.0, "c": 85.0, "d": 84.0}


def option(name: str, backend: str = "eager") -> Option:
    index = "abcd".index(name)
    return Option(
        variant=name, backend=backend, head="", macs=10**9 * 2**index, weights=10**8 * 2**index, score=SCORES[name]
    )


class Pretended:
    """A machine that computes at a tenth of its peak, natively at a fifth, and needs 1 GB more than the weights."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def time(self, option: Option) -> Timing:
        """See `Measure`."""
        self.asked.append(f"{option.variant} {option.backend}")
        seconds = option.macs / (PEAK * (0.2 if option.backend == "native" else 0.1))
        times = {"p50": 1e3 * seconds, "p90": 1.1e3 * seconds, "p99": 2e3 * seconds}
        return Timing(milliseconds=times, images_per_second=1 / seconds, calls=9, peak=PEAK)

    def memory(self, option: Option) -> int | None:
        """See `Measure`."""
        self.asked.append(f"{option.variant} {option.backend} memory")
        return 10**9 + option.weights


def answer(
    demand: Demand, machine: Measure, backends: tuple[str, ...] = ("eager",), room: float = math.inf
) -> list[str]:
    options = [option(name, backend) for name in "dcba" for backend in backends]
    return [
        f"{verdict.option.variant} {verdict.option.backend}"
        for verdict in plan(demand, options, machine, room)
        if verdict.fits
    ]


def test_the_best_score_that_fits_comes_first() -> None:
    assert answer(Demand(latency=10.0), Pretended()) == ["c eager", "d eager", "b eager", "a eager"]
    both = answer(Demand(latency=2.5), Pretended(), ("eager", "native"))
    assert both == ["c native", "b native", "b eager", "a native", "a eager"]


def test_what_a_smaller_one_rules_out_is_not_measured() -> None:
    machine = Pretended()
    verdicts = plan(Demand(latency=1.5), [option(name) for name in "abcd"], machine)
    assert machine.asked == ["a eager", "a eager memory", "b eager"]
    (b,) = (verdict for verdict in verdicts if verdict.option.variant == "b")
    assert b.failures == ("p90 is 2.2 s, 1.5 s are allowed",)
    (c,) = (verdict for verdict in verdicts if verdict.option.variant == "c")
    assert c.timing is None
    assert c.least_seconds == pytest.approx(2.0 + 2e9 / (1.2 * PEAK))
    assert c.least_seconds is not None
    assert c.least_seconds < Pretended().time(c.option).milliseconds["p50"] / 1e3  # a bound, and a true one
    assert "estimated" in c.failures[0]


@pytest.mark.parametrize(
    ("demand", "fits"),
    [
        (Demand(memory=1_250_000_000), ["b eager", "a eager"]),
        (Demand(throughput=0.5), ["b eager", "a eager"]),
        (Demand(latency=2.2, percentile="p99"), ["a eager"]),
        (Demand(latency=2.2, memory=1_150_000_000, throughput=0.1), ["a eager"]),
    ],
)
def test_each_limit_counts(demand: Demand, fits: list[str]) -> None:
    assert answer(demand, Pretended()) == fits


def test_a_miss_by_a_hair_reads_as_one() -> None:
    (verdict,) = plan(Demand(memory=1_099_900_000), [option("a")], Pretended())
    assert verdict.failures == ("takes 1.1000 GB, 1.0999 GB is the limit",)
    (verdict,) = plan(Demand(latency=1.0999), [option("a")], Pretended())
    assert verdict.failures == ("p90 is 1.1 s, 1.0999 s are allowed",)


def test_what_cannot_be_in_memory_is_not_tried() -> None:
    machine = Pretended()
    assert answer(Demand(latency=100.0), machine, room=150e6) == ["a eager"]
    assert machine.asked == ["a eager", "a eager memory"]

    class Full(Pretended):
        def time(self, option: Option) -> Timing:
            raise MemoryError

    (verdict,) = plan(Demand(latency=1.0), [option("a")], Full())
    assert verdict.failures == ("takes more memory than this machine has free",)


def test_the_nearest_miss_is_told() -> None:
    verdicts = plan(
        Demand(latency=0.5), [option(name, by) for name in "abc" for by in ("eager", "native")], Pretended()
    )
    miss = nearest_miss(verdicts)
    assert miss is not None
    assert (miss.option.variant, miss.option.backend) == ("a", "native")
    assert miss.excess == pytest.approx(0.55 / 0.5)
    with pytest.raises(ValueError, match="say what must hold"):
        Demand()


def real(name: str = "davit_pico") -> Option:
    return options_for("classification", [name], ["eager"], (32, 32))[0]


def test_measurements_are_remembered(tmp_path: Path) -> None:
    path, first, second = tmp_path / "cache" / "plan.json", Pretended(), Pretended()
    timing = Remembering(first, ["cpu", 1], path).time(real())
    assert Remembering(first, ["cpu", 1], path).memory(real()) == 10**9 + real().weights
    again = Remembering(second, ["cpu", 1], path)
    known = again.time(real())
    assert replace(known, when="") == timing
    assert known.when
    assert again.memory(real()) == 10**9 + real().weights
    assert second.asked == []
    Remembering(second, ["cpu", 8], path).time(real())
    again.time(real("davit_nano"))
    Remembering(second, ["cpu", 1], path, fresh=True).time(real())
    assert len(second.asked) == 3
    path.write_text("{ damaged")
    again.time(real())
    assert len(second.asked) == 4


def test_a_stopwatch_measures_what_it_says() -> None:
    heads = options_for("detection", ["davit_pico"], ["eager"], (64, 96))
    assert [(one.head, one.macs) for one in heads] == [
        (head, count_macs(variant("davit_pico"), 64, 96, None)) for head in ("mask_rcnn", "retinanet")
    ]
    (segmenter,) = options_for("segmentation", ["davit_pico"], ["eager"], (64, 96))
    assert segmenter.macs > heads[0].macs
    assert options_for("segmentation", ["davit_tiny"], ["eager"], (64, 96))[0].score == 46.3
    timing = Stopwatch(torch.device("cpu"), 2, (32, 48), 0.0).time(real())
    assert timing.calls >= 3
    assert 0 < timing.milliseconds["p50"] <= timing.milliseconds["p99"]
    assert timing.images_per_second == pytest.approx(2e3 / timing.milliseconds["p50"], rel=0.8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of this process's own; the compiled engine stays where it is."""
    monkeypatch.setattr("davit.inference.stopwatch.measurements_file", lambda: tmp_path / "plan.json")


SMALL = ["--size", "32x40", "--variants", "davit_pico,davit_base", "--backends", "eager", "--seconds", "0"]


def test_the_answer_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "plan",
        "--target-latency",
        "1min",
        "--throughput",
        "1/h",
        "--variants",
        "davit_pico",
        *SMALL[:2],
        *SMALL[4:],
    ]
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (result,) = said["results"]
    assert result["fits"]
    assert result["timing"]["when"] == ""
    assert result["published"] is None
    assert result["memory"] is None or result["memory"] > result["option"]["weights"]
    assert said["demand"]["latency"] == 60.0
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "fits, best published score first" in said
    assert "measured now: 0, before: 1" in said


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--target-latency", "1us", *SMALL]) == 1
    captured = capsys.readouterr()
    assert "nothing fits. Nearest," in captured.out
    assert "times a limit: davit_pico by eager" in captured.out
    assert "davit_base by eager: a call takes" in captured.err
    assert main(["plan", "--target-latency", "1us", *SMALL, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["nearest"]["option"]["variant"] == "davit_pico"
    assert [row["timing"] is None for row in said["results"]] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what must hold"),
        (["--target-latency", "50"], "--target-latency takes a positive number with its unit, such as 50ms or 0.05s"),
        (["--memory", "2XB"], "--memory takes a positive number with its unit, such as 2GB or 500MiB, got '2XB'"),
        (["--throughput", "20"], "--throughput takes"),
        (["--target-latency", "0ms"], "got '0ms'"),
        (["--target-latency", "50ms", "--size", "big"], "--size takes sides in pixels"),
        (["--target-latency", "50ms", "--variants", "davit_tinny"], "Did you mean 'davit_tiny'"),
        (["--target-latency", "50ms", "--batch", "0"], "--batch must be at least 1"),
        (["--target-latency", "50ms", "--devices", "8"], "--devices go with --train"),
        (["digits", "--memory", "2GB"], "recipes such as digits go with --train"),
        (["--train", "digits", "--memory", "2GB"], "--memory cannot go with --train"),
        (["--train", "digit"], "Did you mean 'digits'"),
        (["--train", "digits", "--devices", "0"], "--devices must be at least 1"),
        (["--train", "digits", "--flops", "fast"], "--flops takes"),
        (["--train", "digits", "--flops", "1T", "--utilisation", "1.5"], "--utilisation must lie between 0 and 1"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_units() -> None:
    assert parse_duration("--t", "50ms") == pytest.approx(parse_duration("--t", "0.05s"))
    assert [parse_duration("--t", text) for text in ("2min", "250 us", "1e-1s")] == pytest.approx([120, 250e-6, 0.1])
    assert [parse_bytes("--m", text) for text in ("2GB", "500MiB", "1.5gib", "80 GB")] == [
        2 * 10**9,
        500 * 2**20,
        3 * 2**29,
        80 * 10**9,
    ]
    assert [parse_rate("--r", text) for text in ("20/s", "1200/min")] == pytest.approx([20, 20])
    assert [parse_flops("--f", text) for text in ("300T", "0.3P", "300 TFLOPS", "300TFLOP/s")] == pytest.approx(
        [3e14] * 4
    )
    for text in ("", "ms", "-5ms", "nan s", "infs", "1e999s", "5 m s", "1.2.3s", "5m"):
        with pytest.raises(ValueError, match="--t takes a positive number"):
            parse_duration("--t", text)


@pytest.fixture(scope="module")
def digits() -> DryRun:
    return report(recipe_with("digits", ["data.batch_size=12"]))


class Pretend:
    """Plans like a known one: activations follow the micro-batch, and checkpointing keeps a quarter of them."""

    def __init__(self, known: DryRun) -> None:
        """Take what is known of micro-batches of all images."""
        self.known = replace(known, plain=replace(known.plain, activations=4 * GIB))
        self.planned = 0

    def __call__(self, recipe: Recipe, *, world: int, tflops: float) -> DryRun:
        """Plan as `dry_run.report`."""
        self.planned += 1
        micro = self.known.batch_size // world // recipe.runtime.accumulate
        kept = 4 * GIB * micro // self.known.batch_size
        return replace(
            self.known,
            recipe=recipe,
            world=world,
            tflops=tflops,
            micro_batch=micro,
            plain=replace(self.known.plain, activations=kept),
            checkpointed=replace(self.known.plain, activations=kept // 4),
        )


@pytest.mark.parametrize(
    ("gib", "remedy"),
    [
        (6.0, ()),
        (4.0, ("model.backbone.gradient_checkpointing=true",)),
        (1.8, ("model.backbone.gradient_checkpointing=true", "runtime.accumulate=2")),
        (1.3, ("model.backbone.gradient_checkpointing=true", "runtime.accumulate=6")),
        (1.0, None),
    ],
)
def test_what_does_not_fit_gets_settings_that_make_it_fit(
    digits: DryRun, gib: float, remedy: tuple[str, ...] | None
) -> None:
    settings, pretend = ["data.batch_size=12"], Pretend(digits)
    cost = training_cost(recipe_with("digits", settings), Hardware(memory=round(gib * GIB)), pretend)
    assert cost.fits == (remedy == ())
    assert cost.remedy == (remedy or ())
    assert pretend.planned <= 3
    if remedy:
        found = training_cost(recipe_with("digits", [*settings, *remedy]), cost.hardware, pretend)
        assert found.fits
        assert cost.remedied is not None
        assert needed(cost.remedied.memory) == needed(found.plan.memory) <= gib * GIB


def test_time_follows_the_hardware(digits: DryRun) -> None:
    recipe, pretend = recipe_with("digits", ["data.batch_size=12"]), Pretend(digits)
    one = training_cost(recipe, Hardware(flops=100e12), pretend).plan
    assert one.tflops == pytest.approx(100 * UTILISATION)
    assert pytest.approx(64 / 312) == UTILISATION
    four = training_cost(recipe, Hardware(devices=4, flops=200e12), pretend).plan
    assert one.days == pytest.approx(8 * four.days)
    half = training_cost(recipe, Hardware(flops=100e12, utilisation=0.5), pretend).plan
    assert half.days == pytest.approx(one.days * UTILISATION / 0.5)


def test_costs_of_recipes(capsys: pytest.CaptureFixture[str], digits: DryRun) -> None:
    command = ["plan", "--train", "digits", "finetune", "data.batch_size=12", "--device-memory", "24GiB"]
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (row,) = said["recipes"]
    assert (row["recipe"], row["fits"]) == ("digits", True)
    assert (row["steps"], row["needed"]) == (digits.steps, needed(digits.memory))
    assert "data.root" in said["left_out"]["finetune"]
    assert "estimated" in said["assumption"]


def test_a_recipe_that_never_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--train", "digits", "data.batch_size=1", "--device-memory", "1GB"]) == 1
    said = capsys.readouterr().out
    assert "digits does not fit, not even an image at a time" in said
    assert "estimated: 64 TFLOP/s" in said
