"""The measuring of loaders, by `davit benchmark data` and against timm."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from davit.cli import main
from davit.data.shard_writer import write_shards
from runs import colour_folder

ROOT = Path(__file__).parent.parent
SMALL = ["data.image_size=16", "data.batch_size=4"]


@pytest.mark.parametrize("place", ["folder", "shards"])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_stage_and_the_loader_are_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, workers: str
) -> None:
    root = colour_folder(tmp_path / "data")
    if place == "shards":
        write_shards(root, tmp_path / "shards", 100_000)
        root = tmp_path / "shards"
    assert main(["benchmark", "data", str(root), *SMALL, "--images", "16", "--workers", workers, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["images_per_second"]) == ["read", "decode", "augment", "collate"]
    assert sum(report["share"].values()) == pytest.approx(1, abs=1e-3)
    slowest = min(report["images_per_second"].values())
    assert 0 < report["one_process"] <= slowest
    assert report["loader"]["images_per_second"] > 0
    assert (report["images"], report["broken"], report["loader"]["workers"]) == (16, 0, int(workers))


def test_the_table_names_broken_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = colour_folder(tmp_path / "data")
    (root / "red" / "0.png").write_bytes(b"text")
    assert main(["benchmark", "data", str(root), *SMALL, "--images", "24", "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "1 images could not be decoded" in out
    assert "augment" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data", "nowhere"], "nowhere is not there"),
        (["dat"], "Did you mean 'data'"),
        (["data", ".", "--workers", "-1"], "--workers must be at least 0"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_the_comparison_with_timm_runs(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, ROOT / "benchmarks" / "loader.py", "--rounds", "1", "--images", "32", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())["results"]
    assert list(results) == ["davit", "timm", "timm without prefetcher"]
    for result in results.values():
        assert result["images_per_cpu_second"] > 0
    assert results["davit"]["davit_over_it"] == 1.0
