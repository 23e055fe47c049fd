"""`davit predict --out`: killed, stopped, out of space, gone on with, and equal to a run that nothing disturbed."""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import davit
from davit.cli import main
from davit.inference.backends.eager import EagerBackend
from davit.preprocessing import Preprocessing
from spoken_models import model_of
from test_predict import tiny
from test_stream import picture

COUNT = 60
KILLS = 20


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Forked children must not wait for threads that they do not have."""
    torch.set_num_threads(1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    davit.save(tiny(), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures in two folders, three of them broken."""
    for folder in ("a", "b"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for number in range(COUNT // 2):
            picture(tmp_path / "photos" / folder / f"{number:02d}.png", number, (40 + number % 3, 30))
    for broken in ("a/03.png", "a/20.png", "b/29.png"):
        (tmp_path / "photos" / broken).write_bytes(b"no picture")
    return tmp_path / "photos"


def run(words: list[object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["predict", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def child(words: list[object], log: Path, slow: float = 0.0, stop: Callable[[], None] | None = None) -> int:
    """Start the verb in another process; each batch takes `slow` seconds more, and the fourth one calls `stop`."""
    number = os.fork()
    if number:
        return number
    code = 99
    try:
        stderr = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stderr, 1)
        os.dup2(stderr, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        compute, batches = EagerBackend.__call__, [0]

        def slowly(self: EagerBackend, images: torch.Tensor) -> object:
            time.sleep(slow)
            batches[0] += 1
            if stop and batches[0] == 4:
                stop()
            return compute(self, images)

        EagerBackend.__call__ = slowly
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main(["predict", *map(str, words)])
        sys.stdout.flush()
    finally:
        os._exit(code)


def test_the_file_has_the_entries_of_json_and_the_rest_goes_on(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [photos, "--model", checkpoint, "--batch-size", 7, "--top", 2]
    code, printed, _ = run([*words, "--json"], capsys)
    assert code == 1
    code, out, err = run([*words, "--out", tmp_path / "out.jsonl"], capsys)
    assert code == 1
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").open()] == json.loads(printed)
    assert f"{COUNT} answers, 3 of them errors" in out
    assert [line.split(": ")[1] for line in err.splitlines()] == [
        str(photos / broken) for broken in ("a/03.png", "a/20.png", "b/29.png")
    ]
    code, out, err = run([*words, "--out", tmp_path / "out.jsonl", "--json"], capsys)
    assert code == 1  # the errors are still in it
    assert err == f"davit predict: {tmp_path / 'out.jsonl'} has {COUNT} of {COUNT} answers already\n"
    report = json.loads(out)
    assert (report["images"], report["errors"], report["answered_before"]) == (COUNT, 3, COUNT)


def test_what_is_answered_is_not_computed_again(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "predict",
        str(photos),
        "--model",
        str(checkpoint),
        "--batch-size",
        "4",
        "--out",
        str(tmp_path / "o.jsonl"),
    ]
    main(words)
    whole = (tmp_path / "o.jsonl").read_bytes()
    computed, compute = [0], EagerBackend.__call__

    def counted(self: EagerBackend, images: torch.Tensor) -> object:
        computed[0] += len(images)
        return compute(self, images)

    monkeypatch.setattr(EagerBackend, "__call__", counted)
    for answered, most in ((COUNT, 0), (COUNT - 8, 8), (COUNT - 9, 12), (0, COUNT)):
        (tmp_path / "o.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:answered]))
        computed[0] = 0
        main(words)
        assert computed[0] <= most
        assert (tmp_path / "o.jsonl").read_bytes() == whole


def test_killed_at_any_moment_it_becomes_the_file_of_an_undisturbed_run(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    def words(out: str) -> list[object]:
        return [photos, "--model", checkpoint, "--batch-size", 3, "--out", tmp_path / out]

    def finish(process: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    started = time.monotonic()
    assert finish(child(words("whole.jsonl"), tmp_path / "log", slow=0.01)) == 1
    spent = time.monotonic() - started
    whole, rng, kills, lengths = (tmp_path / "whole.jsonl").read_bytes(), random.Random(0), 0, set()
    for out in (f"{number}.jsonl" for number in range(KILLS)):
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            process = child(words(out), tmp_path / "log", slow=0.01)
            if kills < KILLS:
                time.sleep(rng.uniform(0, spent))
                os.kill(process, signal.SIGKILL)
            code = finish(process)
            kills += code == -signal.SIGKILL
            there = (tmp_path / out).read_bytes() if (tmp_path / out).exists() else b""
            assert whole.startswith(there)
            lengths.add(len(there))
        assert (tmp_path / out).read_bytes() == whole
        if kills == KILLS:
            break
    assert len(lengths) > 5


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_it_says_how_to_go_on(number: int, code: int, checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    words = [photos, "--model", checkpoint, "--batch-size", 5, "--out", tmp_path / "out.jsonl"]
    process = child(words, tmp_path / "log", stop=lambda: os.kill(os.getpid(), number))
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == code
    lines = (tmp_path / "out.jsonl").read_bytes().count(b"\n")
    assert lines == 15  # three batches
    *_, last = (tmp_path / "log").read_text().splitlines()
    assert last == (
        f"davit predict: stopped; {lines} of {COUNT} images are answered in {tmp_path / 'out.jsonl'}; "
        "the same command goes on from there"
    )
    process = child(words, tmp_path / "again")
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 1
    assert f"has {lines} of {COUNT} answers already" in (tmp_path / "again").read_text()
    assert (tmp_path / "out.jsonl").read_bytes().count(b"\n") == COUNT


def test_a_printed_list_is_whole_after_sigterm(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    words = [photos / "b", "--model", checkpoint, "--batch-size", 5, "--json"]
    process = child(words, tmp_path / "log", stop=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 143
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if not line.startswith("davit predict: ")]
    assert len(json.loads("\n".join(lines))) == 15


def test_without_space_it_says_how_to_go_on(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [photos, "--model", checkpoint, "--out", tmp_path / "out.jsonl"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        code, out, err = run(words, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (code, out) == (1, "")
    lines = (tmp_path / "out.jsonl").read_bytes().count(b"\n")
    assert err.splitlines()[-1].startswith(
        f"davit predict: error: could not write {tmp_path / 'out.jsonl'}: File too large; {lines} of {COUNT} images are"
    )
    assert run(words, capsys)[0] == 1
    assert (tmp_path / "out.jsonl").read_bytes().count(b"\n") == COUNT


def test_files_of_another_command_are_refused_in_one_line(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def words(*more: object, model: Path = checkpoint) -> list[object]:
        return [photos / "b", "--model", model, "--out", tmp_path / "out.jsonl", *more]

    main(["predict", *map(str, words())])
    before = (tmp_path / "out.jsonl").read_bytes()
    other = tmp_path / "other" / checkpoint.name
    other.parent.mkdir()
    model = tiny()
    nn.init.normal_(model.head.weight)
    davit.save(model, other)
    for changed, reason in (
        (words("--top", 2), "made with top: '5' instead of '2'"),
        (words("--threshold", 0.7), "made with threshold"),
        (words(model=other), "made with model: 'tiny.safetensors (SHA-256"),
        ([photos, *words()[1:]], "picture 1 is"),
    ):
        capsys.readouterr()
        code, out, err = run(changed, capsys)
        assert (code, out) == (2, "")
        assert reason in err
        assert len(err.splitlines()) == 1
    assert (tmp_path / "out.jsonl").read_bytes() == before
    shutil.copy(checkpoint, other)  # the same model elsewhere, and settings that change no answer, are welcome
    assert run([*words(model=other), "--workers", 0, "--batch-size", 2], capsys)[0] == 1


@pytest.mark.parametrize("kind", ["mask_rcnn", "segmenter"])
def test_drawings_and_results_of_a_stopped_run_are_those_of_a_whole_one(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where two pictures have one name, and one of them is broken."""
    davit.save(model_of(kind), tmp_path / "model.safetensors")
    for folder in ("a", "b"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for number in range(4):
            picture(tmp_path / "photos" / folder / f"{number}.png", number, (90 - 20 * (number % 2), 70))
    (tmp_path / "photos" / "a" / "2.png").write_bytes(b"no picture")

    def words(name: str) -> list[object]:
        command = [tmp_path / "photos", "--model", tmp_path / "model.safetensors", "--threshold", 0.2]
        return [
            *command,
            "--batch-size",
            2,
            "--save",
            tmp_path / name / "drawn",
            "--out",
            tmp_path / name / "out.jsonl",
        ]

    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        assert run(words(name), capsys)[0] == 1
    lines = (tmp_path / "cut" / "out.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut" / "out.jsonl").write_bytes(b"".join(lines[:5]))
    for path in (tmp_path / "cut" / "drawn").iterdir():
        if path.name.startswith(("1-2", "2-2", "3-2", "results")):
            path.unlink()
    assert run(words("cut"), capsys)[0] == 1
    whole, cut = ({p.name: p.read_bytes() for p in (tmp_path / name / "drawn").iterdir()} for name in ("whole", "cut"))
    assert whole == cut
    assert len(whole) == (8 if kind == "mask_rcnn" else 14)
    assert Image.open(tmp_path / "cut" / "drawn" / "2-2.png").width >= 90
    if kind == "mask_rcnn":
        check_coco(tmp_path / "cut" / "drawn" / "results.json", [json.loads(line) for line in lines])


def check_coco(path: Path, entries: list[dict]) -> None:
    results = json.loads(path.read_text())
    assert [image["file_name"] for image in results["images"]] == [e["file"] for e in entries if "error" not in e]
    names = {image["id"]: image["file_name"] for image in results["images"]}
    objects = [(entry["file"], found) for entry in entries for found in entry.get("objects", ())]
    assert len(objects) == len(results["annotations"]) > 5
    for (file, found), annotation in zip(objects, results["annotations"], strict=True):
        left, top, width, height = annotation["bbox"]
        assert names[annotation["image_id"]] == file
        assert [left, top, left + width, top + height] == pytest.approx(found["box"], abs=0.011)
        assert annotation["segmentation"] == found["mask"]


def test_plain_lines_tell_how_far_it_has_come(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never of more than is on the disk."""
    monkeypatch.setattr("davit.cli.progress.EVERY", 0.0)
    monkeypatch.setattr("davit.inference.stream_results.EVERY", 0.0)
    _, _, err = run([photos, "--model", checkpoint, "--out", tmp_path / "out.jsonl"], capsys)
    told = [line for line in err.splitlines() if line.startswith("predict: ")]
    assert told[9].startswith(f"predict: 10 of {COUNT} images, ")


def test_preprocessing_is_the_models(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model's file is what is compared, and so is all that lies in it."""
    model = tiny()
    for side in (32, 64):
        model.preprocessing = Preprocessing.imagenet(side)
        davit.save(model, tmp_path / "tiny.safetensors")
        code, _, err = run(
            [photos / "a", "--model", tmp_path / "tiny.safetensors", "--out", tmp_path / "o.jsonl"], capsys
        )
    assert code == 2
    assert "made with model" in err
