"""`davit data`: check, show, shard and index from the command line."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from davit.cli import main
from davit.cli.data_shard import parse_size
from davit.cli.data_show import recipe_on
from davit.data.shards import Shards
from davit.explain.contact_sheet import CELL, MARGIN, augmentation_sheet, choose
from davit.train.build import build_images
from runs import colour_folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["data", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return colour_folder(tmp_path / "colours")


def test_check_ends_with_1_only_where_there_are_errors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", folder, "--workers", 0)
    assert (code, out.splitlines()[-1]) == (0, "0 errors, 0 warnings, 0 notes")
    shutil.copy(folder / "red" / "0.png", folder / "red" / "copy.png")
    code, out, _ = run(capsys, "check", folder, "--workers", 0, "--json")
    report = json.loads(out)
    assert (code, report["levels"], report["images"]) == (0, {"error": 0, "warning": 1, "note": 0}, {"all": 25})
    for number in range(12):
        (folder / "red" / f"bad{number}.png").write_bytes(b"no")
    code, out, _ = run(capsys, "check", folder, "--workers", 0)
    assert code == 1
    assert "error: not-an-image, 12 found" in out
    assert "... and 2 more; --all lists them" in out
    assert str(folder / "red" / "bad9.png") not in out
    assert str(folder / "red" / "bad9.png") in run(capsys, "check", folder, "--workers", 0, "--all")[1]


def test_check_writes_and_verifies_a_manifest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = folder.parent / "colours.sha256"
    assert run(capsys, "check", folder, "--quick", "--workers", 0, "--write-manifest", manifest)[0] == 0
    assert run(capsys, "check", folder, "--quick", "--workers", 0, "--verify", manifest)[0] == 0
    path = folder / "blue" / "0.png"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    code, out, _ = run(capsys, "check", folder, "--quick", "--workers", 0, "--verify", manifest)
    assert code == 1
    assert f"{path}: is not what the manifest says" in out
    code, _, err = run(capsys, "check", folder, "--quick", "--write-manifest", manifest)
    assert (code, "exists already" in err) == (2, True)


def test_shard_then_check_the_shards(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "shards"
    code, told, _ = run(capsys, "shard", folder, out, "--size", "10KB", "--json")
    parts = json.loads(told)["parts"]
    assert (code, parts["all"]["images"], parts["all"]["classes"]) == (0, 24, 3)
    assert parts["all"]["shards"] == len(list(out.glob("all/*.tar"))) > 1
    assert run(capsys, "check", out, "--workers", 0)[0] == 0
    code, _, err = run(capsys, "shard", folder, out)
    assert (code, "nothing is overwritten" in err) == (2, True)


def test_index_makes_shards_of_others_readable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "JPEG")
    for name in ("train-0.tar", "train-1.tar", "val-0.tar"):
        with tarfile.open(tmp_path / name, "w") as tar:
            for key, data in (("a.jpg", stream.getvalue()), ("a.cls", b"1"), ("a.json", b"{}"), ("b.jpg", b"x")):
                info = tarfile.TarInfo(f"{name}-{key}".replace(".tar", ""))
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    tars = [tmp_path / "train-0.tar", tmp_path / "train-1.tar", "--val", tmp_path / "val-0.tar"]
    command = ["index", *tars, "--classes", tmp_path / "names.txt"]
    code, _, err = run(capsys, *command)
    assert code == 2
    assert "train-0-b has no .cls" in err
    assert not (tmp_path / "index.json").exists()
    code, out, _ = run(capsys, *command, "--skip", "--json")
    assert code == 0
    report = json.loads(out)
    assert (report["parts"]["train"]["images"], report["parts"]["val"]["images"], len(report["left_out"])) == (2, 1, 3)
    images = Shards(tmp_path, "train")
    assert images.classes == ("cat", "dog")
    assert [images[index][1] for index in range(2)] == [1, 1]
    code, _, err = run(capsys, *command)
    assert (code, "exists already" in err) == (2, True)


def test_class_names_that_stand_twice_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.txt").write_text("crane\ntench\ncrane\n")
    with tarfile.open(tmp_path / "0.tar", "w"):
        pass
    code, _, err = run(capsys, "index", tmp_path / "0.tar", "--classes", tmp_path / "names.txt")
    assert (code, "'crane'" in err, "'tench'" in err) == (2, True, False)


def test_a_folder_of_tars_says_how_to_index_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(tmp_path / "0.tar", "w"):
        pass
    code, _, err = run(capsys, "check", tmp_path)
    assert (code, "davit data index" in err) == (2, True)


def test_show_draws_what_training_loads(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sheet.png"
    arguments = ["finetune", "data.image_size=84", "data.augmentation.erasing=0", "--images", 3, "--draws", 2]
    code, out, _ = run(capsys, "show", folder, *arguments, "--out", file, "--json")
    assert code == 0
    told = json.loads(out)
    with Image.open(file) as sheet:
        assert sheet.size == (told["width"], told["height"])
        pixels = np.asarray(sheet)

    from davit.data.loader import TrainSamples
    from davit.data.transforms import TrainTransform
    from davit.train.build import build_preprocessing

    recipe = recipe_on(str(folder), ("data.image_size=84", "data.augmentation.erasing=0"))
    preprocessing = build_preprocessing(recipe.data, None)
    train = build_images(recipe.data, 0).train
    samples = TrainSamples(train, TrainTransform(recipe.data.augmentation, preprocessing), 0)
    index = choose(train, 3, 0)[0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    seen = ((samples[1, index].pixels * std + mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    large = np.asarray(Image.fromarray(seen).resize((CELL, CELL), Image.Resampling.BICUBIC))
    right = pixels.shape[1] - MARGIN
    assert np.array_equal(pixels[36 : 36 + CELL, right - CELL : right], large)


def test_show_picks_as_many_classes_as_it_can(folder: Path) -> None:
    images = build_images(recipe_on(str(folder), ()).data, 0).train
    assert {images[index][1] for index in choose(images, 3, 0)} == {0, 1, 2}
    assert len(set(choose(images, 12, 5))) == 12


def test_show_takes_the_built_in_digits_and_odd_class_names(tmp_path: Path) -> None:
    assert augmentation_sheet(recipe_on("digits", ()), images=2, draws=1).width > 2 * CELL
    names = ("猫", "two\nlines", "x" * 200)
    root = colour_folder(tmp_path / "odd", names)
    assert augmentation_sheet(recipe_on(str(root), ("data.image_size=16",)), images=3, draws=1).height > 3 * CELL


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chek"], "Did you mean 'check'"),
        (["check", "nowhere"], "nowhere is not there"),
        (["show", "nowhere"], "nowhere is not there"),
        (["show", ".", "finetunes"], "Did you mean 'finetune'"),
        (["shard", "nowhere", "out"], "nowhere is not there"),
        (["shard", ".", "out", "--size", "big"], "--size 'big' is no number of bytes"),
        (["index", "nowhere.tar"], "nowhere.tar: no such file"),
        (["check", "http://127.0.0.1:9"], "http://127.0.0.1:9/index.json: "),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_help_is_short_and_loads_nothing_heavy() -> None:
    import subprocess
    import sys

    for verb in ("check", "show", "shard", "index"):
        command = [sys.executable, "-X", "importtime", "-m", "davit", "data", verb, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert f"usage: davit data {verb}" in done.stdout
        assert "| torch\n" not in done.stderr


def test_sizes() -> None:
    assert [parse_size(text) for text in ("256MB", "1.5 gb", "10k", "99")] == [256_000_000, 1_500_000_000, 10_000, 99]
