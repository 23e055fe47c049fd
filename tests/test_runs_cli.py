"""`davit runs` on folders in every state, and the TensorBoard events of a run."""

import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image

from davit.cli import main
from davit.explain.compare_runs import compare, render, settings_lines, table, write_comparison
from davit.explain.run_folder import find_runs, read_run
from davit.recipes import make_recipe
from davit.records import assign, to_json
from davit.train.board import Board
from davit.train.run import write_json
from test_report import read


def make_run(folder: Path, scores: list[float | None], *, finished: bool = True, **settings: str) -> Path:
    """Write what a run of 10 steps an epoch leaves behind."""
    folder.mkdir(parents=True)
    recipe = make_recipe("digits")
    for path, text in settings.items():
        recipe = assign(recipe, path.replace("__", "."), text)
    write_json(folder / "recipe.json", to_json(recipe))
    lines = []
    for epoch, score in enumerate(scores, 1):
        at = {"step": 10 * epoch, "epoch": float(epoch)}
        lines.append(at | {"loss": 2.0 / epoch, "images_per_second": 100.0 * epoch, "learning_rate": 1e-3})
        lines.append(at | {"top1": score, "validation_loss": 3.0 / epoch})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        write_json(folder / "metrics.json", {"seconds": 90.0, "images_per_second": 250.0, "parameters": 2_700_000})
    return folder


def age(folder: Path, minutes: float) -> None:
    then = time.time() - 60 * minutes
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))


def test_best_first_with_best_and_last_score(tmp_path):
    make_run(tmp_path / "low", [0.2, 0.3])
    make_run(tmp_path / "deep" / "high", [0.9, 0.5])
    comparison = compare([tmp_path])
    assert [run.path.name for run in comparison.runs] == ["high", "low"]
    high = comparison.to_json()["runs"][0]
    assert (high["best"], high["last"], high["loss"]) == (0.9, 0.5, 1.0)
    assert (high["epochs_done"], high["epochs"]) == (2.0, make_recipe("digits").schedule.epochs)
    assert (high["seconds"], high["images_per_second"]) == (90.0, 250.0)
    losses = compare([tmp_path], "validation_loss")
    assert losses.best(losses.runs[0]) == 1.5  # the lowest counts


def test_states(tmp_path):
    finished = make_run(tmp_path / "finished", [0.5])
    running = make_run(tmp_path / "running", [0.5], finished=False)
    stopped = make_run(tmp_path / "stopped", [0.5], finished=False)
    patient = make_run(tmp_path / "patient", [0.5], finished=False, runtime__save_minutes="60")
    age(finished, 60)
    age(stopped, 60)
    age(patient, 60)
    assert [read_run(p).state for p in (finished, running, stopped, patient)] == [
        "finished",
        "running",
        "stopped",
        "running",
    ]


def test_half_written_folders_are_shown_as_far_as_they_go(tmp_path):
    whole = make_run(tmp_path / "whole", [0.5])
    torn = make_run(tmp_path / "torn", [0.4, 0.6], finished=False)
    with (torn / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "top1": 0.9')
    saved = {"manifest": {"step": 20, "progress": {"seconds": 33.0}}, "sha256": "0"}
    (torn / "step-00000020").mkdir()
    write_json(torn / "step-00000020" / "manifest.json", saved)
    (torn / "step-00000030").mkdir()
    (torn / "step-00000030" / "manifest.json").write_text('{"manifest"')
    empty = make_run(tmp_path / "empty", [], finished=False)
    (empty / "metrics.jsonl").unlink()
    broken = make_run(tmp_path / "broken", [0.1], finished=False)
    (broken / "recipe.json").write_text('{"name": "digi')
    failed = make_run(tmp_path / "failed", [None], finished=False)
    comparison = compare([tmp_path])
    assert [run.path for run in comparison.runs] == [torn, whole, broken, empty, failed]
    assert comparison.best(comparison.runs[0]) == 0.6
    assert comparison.runs[0].seconds == 33.0
    assert comparison.runs[0].images_per_second == 150.0  # median of 100 and 200
    assert comparison.runs[0].parameters > 2_000_000
    assert comparison.runs[2].state == "unreadable"
    assert all(len(row) == len(table(comparison)[0]) for row in table(comparison))
    read(render(comparison))
    write_comparison(comparison, tmp_path / "plot.png")


def test_settings_that_differ_and_only_those(tmp_path):
    make_run(tmp_path / "a", [0.9], optimizer__learning_rate="0.001")
    make_run(tmp_path / "b", [0.8], optimizer__learning_rate="0.002", data__root="<i>")
    make_run(tmp_path / "c", [0.7], optimizer__learning_rate="0.001")
    comparison = compare([tmp_path])
    assert comparison.settings() == {"optimizer.learning_rate": [0.001, 0.002, 0.001], "data.root": ["", "<i>", ""]}
    assert "optimizer.learning_rate: 0.001 (1, 3); 0.002 (2)" in settings_lines(comparison)
    page = render(comparison)
    read(page)
    assert "<i>" not in page.split("Settings that differ</h2>")[1]


def test_the_page_draws_the_best_runs_and_the_picture_is_one(tmp_path):
    for index in range(10):
        make_run(tmp_path / f"run{index}", [0.1 * index, 0.1 * index])
    comparison = compare([tmp_path])
    write_comparison(comparison, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "The best 8 runs are drawn, 2 are not" in page
    assert "run 8 " in page
    assert "run 9 " not in page
    assert "http://" not in page
    assert "https://" not in page
    write_comparison(comparison, tmp_path / "plot.png")
    assert min(Image.open(tmp_path / "plot.png").size) > 400
    with pytest.raises(ValueError, match=r"\.html or \.png"):
        write_comparison(comparison, tmp_path / "plot.gif")


def test_command_line(tmp_path, capsys):
    make_run(tmp_path / "a", [0.25])
    make_run(tmp_path / "a" / "sweep" / "b", [0.75])
    assert main(["runs", str(tmp_path), "--out", str(tmp_path / "all.html")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["run", "recipe", "variant", "params"]
    assert "75 %" in lines[1]
    assert "25 %" in lines[2]
    assert main(["runs", str(tmp_path / "a"), str(tmp_path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 2  # a run named twice is shown once


def test_wrong_usage_says_what_to_do(tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    make_run(tmp_path / "a", [0.5])
    for arguments, said in (
        ([str(tmp_path / "nothing")], "no folder in it has a recipe.json"),
        ([str(tmp_path / "absent")], "not there"),
        ([str(tmp_path / "a"), "--metric", "top2"], "top1"),
    ):
        assert main(["runs", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert find_runs([tmp_path]) == [tmp_path / "a"]


def test_board_without_tensorboard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"davit\[tensorboard\]"):
        Board(tmp_path)


def test_board_shows_each_step_once_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def write(first_step: int, last_step: int, loss: float) -> None:
        board = Board(tmp_path, first_step)
        for step in range(first_step + 1, last_step + 1):
            board.record({"step": step, "loss": loss, "top1": None, "note": "text"})
        board.close()

    write(0, 5, 1.0)
    time.sleep(1.1)  # files are read in the order of the seconds in their names
    write(3, 6, 2.0)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]
