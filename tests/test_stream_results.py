"""Files of answers: gone on with after any cut, refused where they are of something else, and safe on a full disk."""

import json
import os
import random
import resource
from pathlib import Path
from typing import Any

import pytest

from davit.inference.stream_results import ResultFile, fingerprint

MADE = {"model": "mine.safetensors", "top": "5"}


def entries(count: int = 30) -> list[dict[str, Any]]:
    """Answers with names that are hard on a line, and an error now and then."""
    names = ["a.jpg", "two\nlines.png", "\udcff.png", "schöne 猫.png", '"quoted".png']
    return [
        {"file": f"{number}/{names[number % 5]}"} | ({"error": "damaged"} if number % 7 == 3 else {"top": [number]})
        for number in range(count)
    ]


def names(count: int = 30) -> list[str]:
    return [entry["file"] for entry in entries(count)]


def go_on(path: Path) -> int:
    """Add what is missing; return how many there were."""
    with ResultFile(path, MADE, names()) as file:
        before = file.answered
        for entry in entries()[before:]:
            file.add(entry)
        assert file.answered == 30
        assert file.broken == 4
    return before


def test_a_file_is_lines_of_json_in_order(tmp_path: Path) -> None:
    assert go_on(tmp_path / "out.jsonl") == 0
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()] == entries()
    assert go_on(tmp_path / "out.jsonl") == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.made-with.json"]


def test_cut_anywhere_it_becomes_what_it_would_have_been(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    go_on(path)
    whole = path.read_bytes()
    for end in sorted({*range(0, len(whole) + 1, 9), *(at + 1 for at, byte in enumerate(whole) if byte == 10)}):
        path.write_bytes(whole[:end])
        assert go_on(path) == whole[:end].count(b"\n")
        assert path.read_bytes() == whole


def test_zeros_that_a_power_cut_leaves_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    go_on(path)
    whole = path.read_bytes()
    start = whole.index(b"\n", 500) + 1
    path.write_bytes(whole[:start] + bytes(700))
    assert go_on(path) == whole[:start].count(b"\n")
    assert path.read_bytes() == whole


def test_lines_are_with_the_system_at_once_and_told_of_when_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (fsync(number), synced.append(os.fstat(number).st_size)))
    with ResultFile(tmp_path / "out.jsonl", MADE, names()) as file:
        for entry in entries():
            file.add(entry)
            lines = (tmp_path / "out.jsonl").read_bytes()
            assert lines.count(b"\n") == file.answered
            assert lines[: synced[-1]].count(b"\n") >= file.safe or not file.safe
        assert file.safe < 30  # not each line by itself: disks take milliseconds
        file.sync()
        assert file.safe == 30
        assert synced[-1] == len(lines)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({**MADE, "model": "other.safetensors"}, r"made with model: 'mine.safetensors' instead of 'other.safetensors'"),
        ({**MADE, "top": "1"}, r"made with top: '5' instead of '1'"),
        ({**MADE, "more": "x"}, r"made with more: None instead of 'x'"),
    ],
)
def test_files_of_other_models_and_options_are_refused(tmp_path: Path, made: dict[str, str], reason: str) -> None:
    go_on(tmp_path / "out.jsonl")
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(ValueError, match=reason):
        ResultFile(tmp_path / "out.jsonl", made, names())
    assert (tmp_path / "out.jsonl").read_bytes() == before
    (tmp_path / "out.jsonl").write_bytes(b"")  # nothing in it that could be of something else
    ResultFile(tmp_path / "out.jsonl", made, names()).close()


def test_files_of_other_pictures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    go_on(path)
    whole = path.read_bytes()
    for wanted, reason in (
        (names()[1:], "line 1 answers '0/a.jpg', but picture 1 is"),
        (names()[:20], "line 21 .* but there are no more pictures"),
        (["new.jpg", *names()], "picture 1 is 'new.jpg' now"),
    ):
        with pytest.raises(ValueError, match=reason):
            ResultFile(path, MADE, wanted)
    assert path.read_bytes() == whole
    file = ResultFile(path, MADE, [*names(), "later.jpg"])  # those that come after are no harm
    assert file.answered == 30
    file.close()


def test_what_is_no_result_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("my diary")
    with pytest.raises(ValueError, match=r"out\.jsonl\.made-with\.json, which says what made it, is not beside it"):
        ResultFile(path, MADE, names())
    assert path.read_text() == "my diary"
    path.unlink()
    go_on(path)
    lines = path.read_bytes().splitlines(keepends=True)
    for damage in (b"\0\0\0\n", b'{"file": \n', b"[1]\n", b'{"top": 1}\n'):
        path.write_bytes(b"".join((*lines[:8], damage, *lines[9:])))
        with pytest.raises(ValueError, match="line 9 is damaged"):
            ResultFile(path, MADE, names())
    with pytest.raises(OSError, match=r"could not write .*nowhere/out\.jsonl: No such file or directory"):
        ResultFile(tmp_path / "nowhere" / "out.jsonl", MADE, names())
    with pytest.raises(OSError, match="Is a directory"):
        ResultFile(tmp_path, MADE, names())


def test_only_one_process_writes(tmp_path: Path) -> None:
    with (
        ResultFile(tmp_path / "out.jsonl", MADE, names()),
        pytest.raises(ValueError, match="being written by another process"),
    ):
        ResultFile(tmp_path / "out.jsonl", MADE, names())
    go_on(tmp_path / "out.jsonl")


def test_without_space_whole_lines_stay(tmp_path: Path) -> None:
    """The system writes what fits of a line before it refuses the rest."""
    path = tmp_path / "out.jsonl"
    go_on(path)
    whole = path.read_bytes()
    for quota in random.Random(0).sample(range(1, len(whole)), 12):
        path.write_bytes(b"")
        ResultFile(path, MADE, names()).close()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (quota, before[1]))
        try:
            with pytest.raises(OSError, match=r"could not write .*out\.jsonl: File too large"):
                go_on(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.read_bytes() == whole[: whole.rfind(b"\n", 0, quota) + 1]
        go_on(path)
        assert path.read_bytes() == whole


def test_models_are_known_by_all_their_bytes(tmp_path: Path) -> None:
    for name, weights in (("a.onnx", "a.onnx.data"), ("a.xml", "a.bin"), ("a.safetensors", None)):
        (tmp_path / name).write_bytes(b"graph")
        seen = [fingerprint(tmp_path / name)]
        if weights:
            (tmp_path / weights).write_bytes(b"weights")
            seen.append(fingerprint(tmp_path / name))
            (tmp_path / weights).write_bytes(b"Weights")
            seen.append(fingerprint(tmp_path / name))
        (tmp_path / name).write_bytes(b"Graph")
        seen.append(fingerprint(tmp_path / name))
        assert len({*seen}) == len(seen)
