"""The HTML report."""

import dataclasses
import html
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from davit.explain import charts, explorer, report
from davit.explain.class_table import class_table, most_confused, worst_first
from davit.explain.report import ReportInput, Sample, render, write_report
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.preprocessing import Preprocessing

AWKWARD = "<b>&\"'</script>"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Reads a page, insists that every tag is closed in order, and keeps what tests ask for."""

    def __init__(self) -> None:
        """Start with nothing read."""
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open an element."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element without content."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost element, which must be this one."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep text."""
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each element of a kind."""
        return [attrs for name, attrs in self.tags if name == tag]


def read(page: str) -> Page:
    parser = Page()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def make_input(classes: tuple[str, ...] = (AWKWARD, "two", "three"), **backbone: object) -> ReportInput:
    torch.manual_seed(0)
    config = DaViTConfig(in_channels=1, widths=(16, 16, 16, 16), depths=(1, 1, 1, 1), head_width=8, window=3)
    model = Classifier(ClassifierConfig(backbone=config.override(**backbone), num_classes=len(classes))).eval()
    model.preprocessing = Preprocessing(size=(32, 32), crop=1.0, mean=(0.5,), std=(0.5,))
    model.classes = classes
    last = len(classes) - 1
    samples = [
        Sample(image=Image.new("L", (8, 8), 40 * i), pixels=torch.randn(1, 32, 32), target=t, prediction=p, score=0.5)
        for i, (t, p) in enumerate([(0, 0), (0, last), (last, last)])
    ]
    return ReportInput(
        title=f"Report {AWKWARD}",
        model=model,
        history=[
            {"step": 10, "epoch": 0, "loss": 2.0, "learning_rate": 1e-3},
            {"step": 20, "epoch": 0, "loss": math.nan, "learning_rate": 5e-4},
            {"step": 20, "epoch": 0, "top1": 0.4, "top5": 1.0, "validation_loss": 1.5},
            {"step": 30, "epoch": 1, "loss": 1.0, "learning_rate": 1e-4},
            {"step": 30, "epoch": 1, "top1": 0.6, "top5": 1.0, "validation_loss": 1.2},
        ],
        metrics={"top1": 0.6, "count": 5, "parameters": 2_700_000, "strange_number": math.nan},
        confusion=[[1 + (i == j) for j in range(len(classes))] for i in range(len(classes))],
        samples=samples,
        card={"Command": f"davit train {AWKWARD}"},
    )


def test_page_is_whole_self_contained_and_escaped() -> None:
    page = render(make_input())
    parsed = read(page)
    assert AWKWARD not in page
    assert "http://" not in page
    assert "https://" not in page
    for _, attrs in parsed.tags:
        for name in ("src", "href"):
            assert (attrs.get(name) or "data:").startswith(("data:", "#"))
    assert all(attrs.get("alt") is not None for attrs in parsed.all("img"))
    assert "".join(parsed.words).count(AWKWARD) >= 4
    assert len(parsed.all("h1")) == 1
    anchors = {attrs["href"] for attrs in parsed.all("a")}
    assert anchors <= {f"#{attrs['id']}" for _, attrs in parsed.tags if "id" in attrs}


def test_attention_data_can_be_read_back() -> None:
    page = render(make_input())
    found = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    data = [json.loads(each) for each in found]
    assert len(data) == 3
    assert {sample["name"] for sample in data} == {AWKWARD, "three"}
    first = data[0]["windows"][0]
    assert (first["side"], first["window"], first["heads"], first["step"]) == ([8, 8], 3, 2, 1)
    assert first["padding"][0][0] == 0
    assert first["padding"][7][7] > 0
    assert data[0]["channels"][0]["chosen"][0][0] in range(8)
    wrong = next(sample for sample in data if not sample["right"])
    assert [cam["label"] for cam in wrong["cams"]] == ["three", AWKWARD]  # what it said, then what it is
    assert all(len(cam["maps"]) == 4 for cam in wrong["cams"])
    assert wrong["rollout"]["cells"] == [8, 8]


def test_write_replaces_the_page_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write_report(make_input(), path)
    whole = path.read_text(encoding="utf-8")
    assert whole.startswith("<!doctype html>")
    assert len(whole) < 1_000_000

    def fail(data: ReportInput) -> str:
        raise RuntimeError("no page")

    monkeypatch.setattr(report, "render", fail)
    with pytest.raises(RuntimeError):
        write_report(make_input(), path)
    assert path.read_text(encoding="utf-8") == whole
    assert list(tmp_path.iterdir()) == [path]


def test_no_wrong_samples_and_no_samples() -> None:
    data = make_input()
    right = dataclasses.replace(data, samples=[s for s in data.samples if s.target == s.prediction])
    assert "No mistakes among the pictures" in render(right)
    read(render(dataclasses.replace(data, samples=[], card={}, metrics={})))


@pytest.mark.parametrize(
    "history", [[], [{"step": 1, "loss": 2.0}], [{"step": 1, "top1": 0.5}], [{"step": 1, "loss": math.nan}]]
)
def test_short_histories(history: list[dict[str, float]]) -> None:
    read(render(dataclasses.replace(make_input(), history=history, samples=[])))


def test_losses_that_are_not_finite_leave_a_gap_and_a_note() -> None:
    drawn = charts.learning_curves(make_input().history)
    assert "1 logged losses were not finite" in drawn
    assert "nan" not in drawn
    first = re.findall(r'<path class="tone-a" d="([^"]*)"', drawn)[0]
    assert first.count("M") == 2


def test_one_class_and_many() -> None:
    read(render(make_input(classes=("only",))))
    many = make_input(classes=tuple(f"class {i}" for i in range(41)))
    page = render(dataclasses.replace(many, samples=[]))
    assert "25 most frequent of 1640 confused pairs" in page
    assert 'class="confusion' not in page.split("</style>")[1]


@pytest.mark.parametrize("kind", ["window", "channel"])
def test_models_with_one_attention(kind: str) -> None:
    page = render(make_input(attentions=(kind,)))
    read(page)
    assert ("Window attention</h2>" in page) == (kind == "window")
    assert ("Channel attention</h2>" in page) == (kind == "channel")


def test_confused_pairs_come_in_order() -> None:
    table = charts.confused_pairs([[5, 3, 0], [9, 1, 0], [0, 0, 4]], ("a", AWKWARD, "c"))
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td[^>]*>(\d+)</td><td[^>]*>(.*?)</td></tr>", table)
    assert rows == [(html.escape(AWKWARD), "a", "9", "90 %"), ("a", html.escape(AWKWARD), "3", "37.5 %")]


def test_the_page_carries_a_bounded_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "ATTENTION_BYTES", 1)
    assert len(re.findall("data-sample=", render(make_input()).split("<script")[0])) == 4  # one, in all strips


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (3e-4, 3e-4), (0.0, 0.0), (0.91, 0.994), (1, 20_000)])
def test_ticks_are_few_and_span_the_range(low: float, high: float) -> None:
    marks = charts.ticks(low, high)
    assert 2 <= len(marks) <= 8
    assert marks[0] <= low + 1e-12
    assert marks[-1] >= high - 1e-12


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (2e-4, "2e-4"), (1.24e-5, "1.2e-5"), (0.5, "0.5"), (1500, "1,500"), (2e6, "2e6")]
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert charts.plain(value) == shown


def test_classes_come_worst_first_with_what_they_are_taken_for() -> None:
    confusion = [[8, 2, 0], [0, 0, 0], [3, 1, 0]]
    page = class_table([(10, 8), (0, 0), (4, 0)], confusion, (AWKWARD, "none", "worst"))
    rows = re.findall(
        r'<tr><th scope="row">(.*?)</th>.*?data-key="(\d+)".*?data-key="([\d.]*)".*?<td>(.*?)</td></tr>', page
    )
    assert rows == [
        ("worst", "4", "0.000000", f"{html.escape(AWKWARD)} (3)"),
        (html.escape(AWKWARD), "10", "0.800000", "none (2)"),
        ("none", "0", "", ""),
    ]
    assert worst_first([(1, 0), (9, 0), (0, 0), (2, 1)]) == [1, 0, 3, 2]
    assert most_confused([5, 0, 0], 0) is None
    assert most_confused([5, 2, 2], 0) == (1, 2)


def test_more_classes_than_pairs_can_be_counted() -> None:
    data = dataclasses.replace(make_input(), samples=[], confusion=[], counts=[(2, 1)] * 1200)
    page = render(data)
    read(page)
    assert "names 1,200 of 2,400 images right, among 1,200 classes" in page
    assert "The 1,000 worst of 1,200 classes" in page
    assert "Pairs of classes were not counted" in page


def test_speed_waiting_notes_and_environment_are_shown() -> None:
    history = [{"step": s, "loss": 1.0, "images_per_second": 40.0 * s, "loader_share": 0.1 * s} for s in (1, 2, 3)]
    data = dataclasses.replace(
        make_input(), history=history, notes=(AWKWARD, "second"), environment={"gpus": AWKWARD}, searched=77
    )
    page = render(data)
    assert AWKWARD not in page
    words = " ".join(read(page).words)
    for text in (
        "Images per second",
        "last 120",
        "Time spent waiting for data",
        "last 30 %",
        "second",
        "gpus",
        "among 77",
    ):
        assert text in words
