"""`davit embed` and `davit search`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors

import davit
from colour_texts import fresh, plain_picture, saved, taught
from davit.cli import main
from davit.decoding import read_image
from davit.inference.index import Index, read_index, write_index
from davit.inference.zero_shot import embed_texts
from davit.weights.save import save
from runs import colour_folder


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_folder(tmp_path_factory.mktemp("embed") / "colours")


@pytest.fixture(scope="module")
def model(colours: Path) -> str:
    return saved(taught(colours), colours.parent / "model.safetensors")


def some(rows: int, length: int = 12, kind: str = "image") -> Index:
    vectors = np.random.default_rng(0).normal(size=(rows, length)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = tuple(f"ünï/{row}.png" for row in range(rows))
    return Index(vectors=vectors, names=names, kind=kind, model="m.safetensors", fingerprint="f", size=32)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".jsonl"])
@pytest.mark.parametrize("rows", [0, 1, 300])
def test_an_index_comes_back_to_the_bit(tmp_path: Path, suffix: str, rows: int) -> None:
    path = tmp_path / f"index{suffix}"
    write_index(path, some(rows))
    found = read_index(path)
    assert np.array_equal(found.vectors.reshape(-1), some(rows).vectors.reshape(-1))
    assert (found.size, found.variant) == (32, None)
    assert (found.names, found.kind, found.model, found.fingerprint) == (
        some(rows).names,
        "image",
        "m.safetensors",
        "f",
    )


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".jsonl"])
def test_damaged_indices_are_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"index{suffix}"
    write_index(path, some(50))
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"nonsense" + whole[8:], bytes(reversed(whole))):
        path.write_bytes(damaged)
        if damaged == b"" and suffix == ".jsonl":
            continue  # no lines are no vectors
        with pytest.raises(ValueError, match=str(path.name)):
            read_index(path)
    path.unlink()
    with pytest.raises(ValueError, match="davit embed"):
        read_index(path)


def test_what_is_nearest_is_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("davit.inference.index._ROWS", 64)  # several blocks
    index = some(300)
    queries = some(7).vectors
    theirs = NearestNeighbors(n_neighbors=9, metric="cosine").fit(index.vectors)
    distances, places = theirs.kneighbors(queries)
    for found, wanted, distance in zip(index.nearest(queries, 9), places, distances, strict=True):
        assert [row for row, _ in found] == wanted.tolist()
        assert [1 - score for _, score in found] == pytest.approx(distance.tolist(), abs=1e-5)
    assert len(index.nearest(queries, 1000)[0]) == 300
    with pytest.raises(ValueError, match="vectors of 12 numbers"):
        index.nearest(np.ones((1, 5), np.float32), 1)


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".jsonl"])
def test_vectors_are_the_models(
    model: str, colours: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"index{suffix}"
    assert main(["embed", str(colours), "--model", model, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 24
    index = read_index(out)
    made = {out.name, f"{out.name}.made-with.json"} if suffix == ".jsonl" else {out.name}
    assert {path.name for path in tmp_path.iterdir()} == made
    loaded = davit.load(model)
    for name, vector in zip(index.names[::5], index.vectors[::5], strict=True):
        pixels = loaded.preprocessing(read_image(name))  # type: ignore[misc]
        with torch.no_grad():
            wanted = loaded.embed_images(pixels[None])[0]  # type: ignore[union-attr]
        np.testing.assert_allclose(vector, wanted, atol=1e-5)


def test_texts_and_pictures_find_each_other(
    model: str, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("a green picture\n\na red picture\n", encoding="utf-8")
    texts, photos = str(tmp_path / "texts.npz"), str(tmp_path / "photos.npz")
    command = ["embed", "--texts", str(tmp_path / "texts.txt"), "a blue picture", "--model", model, "--out", texts]
    assert main(command) == 0
    assert main(["embed", str(colours), "--model", model, "--out", photos]) == 0
    index = read_index(Path(texts))
    assert index.names == ("a green picture", "a red picture", "a blue picture")
    np.testing.assert_allclose(index.vectors, embed_texts(davit.load(model), index.names), atol=1e-6)  # type: ignore[arg-type]
    capsys.readouterr()
    red = str(plain_picture(tmp_path / "red.png", (220, 9, 9)))
    assert main(["search", "--index", texts, red, "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["kind"], entry["hits"][0]["text"]) == ("image", "a red picture")
    sheet = tmp_path / "hits.png"
    command = ["search", "--index", photos, "a green picture", red, "--top", "8", "--json", "--save", str(sheet)]
    assert main(command) == 0
    for entry, colour in zip(json.loads(capsys.readouterr().out), ("green", "red"), strict=True):
        assert {Path(hit["file"]).parent.name for hit in entry["hits"]} == {colour}
        scores = [hit["score"] for hit in entry["hits"]]
        assert scores == sorted(scores, reverse=True)
    drawn = np.asarray(Image.open(sheet).convert("RGB")).astype(int)
    green, red_pixels = (((drawn[..., c] > drawn[..., a] + 60) & (drawn[..., c] > drawn[..., b] + 60)).sum()
                         for c, a, b in ((1, 0, 2), (0, 1, 2)))  # fmt: skip
    assert green > 8 * 3000
    assert red_pixels > 9 * 3000


def test_any_model_gives_vectors_and_pictures_find_pictures(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    save(davit.create_backbone("davit_pico", window=4), tmp_path / "backbone.safetensors")
    command = ["embed", str(colours), "--model", str(tmp_path / "backbone.safetensors"), "--size", "32"]
    assert main([*command, "--out", str(tmp_path / "a.npz")]) == 0
    assert main([*command, "--out", str(tmp_path / "b.npz"), "--backend", "native"]) == 0
    a, b = read_index(tmp_path / "a.npz"), read_index(tmp_path / "b.npz")
    np.testing.assert_allclose(a.vectors, b.vectors, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(a.vectors, axis=1), 1, atol=1e-5)
    capsys.readouterr()
    one = a.names[3]
    assert main(["search", "--index", str(tmp_path / "a.npz"), one, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["hits"][0] == {"file": one, "score": pytest.approx(1, abs=1e-5)}
    assert main(["search", "--index", str(tmp_path / "a.npz"), "a text"]) == 2
    assert "no image-text model" in capsys.readouterr().err


def test_a_broken_picture_is_named_and_left_out(
    model: str, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(next(colours.rglob("*.png")))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "index.parquet"
    assert main(["embed", str(tmp_path / "broken.png"), good, "--model", model, "--out", str(out)]) == 1
    assert "broken.png" in capsys.readouterr().err
    assert read_index(out).names == (good,)


def test_a_stopped_run_goes_on(model: str, tmp_path: Path) -> None:
    """Stopped in its middle, the same command makes the file that an undisturbed one makes."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(400):
        Image.fromarray(rng.integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(folder / f"{number:03d}.png")
    out, lines = tmp_path / "many.npz", tmp_path / "many.npz.lines"
    words = ["embed", str(folder), "--model", model, "--workers", "0", "--batch-size", "4"]
    command = [sys.executable, "-m", "davit", *words, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (lines.is_file() and lines.read_bytes().count(b"\n") > 20) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert b"goes on from there" in process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert not out.exists()
    done = lines.read_bytes().count(b"\n")
    assert 20 < done < 400
    again = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    assert f"{done:,} of 400 answers already" in again.stderr
    assert main([*words, "--out", str(tmp_path / "whole.npz")]) == 0
    first, second = read_index(out), read_index(tmp_path / "whole.npz")
    assert first.names == second.names
    np.testing.assert_allclose(first.vectors, second.vectors, atol=1e-6)


def test_wrong_uses_are_told(model: str, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, good = str(tmp_path / "index.npz"), str(next(colours.rglob("*.png")))
    assert main(["embed", good, "--model", model, "--out", index]) == 0
    other = saved(fresh(5), tmp_path / "other.safetensors")
    for command, told in (
        (["embed", good, "--model", model, "--out", str(tmp_path / "index.csv")], ".npz, .parquet, .jsonl"),
        (["embed", "--model", model, "--out", index], "one of both"),
        (["embed", good, "--texts", "a", "--model", model, "--out", index], "one of both"),
        (["embed", good, "--model", str(tmp_path / "none.safetensors"), "--out", index], "none.safetensors"),
        (["search", "--index", index, "a text", "--model", other], "another model"),
        (["search", "--index", index, "gone.jpg"], "gone.jpg is not there"),
        (["search", "--index", str(tmp_path / "none.npz"), "a text"], "none.npz is not there"),
        (["search", "--index", index, "a text", "--save", "hits.gif"], ".png"),
        (["search", "--index", index, "a text", "--top", "0"], "at least 1"),
    ):
        assert main(command) == 2
        assert told in capsys.readouterr().err
