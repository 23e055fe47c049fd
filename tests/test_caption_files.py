"""Captions on disk: every layout gives the same pairs, and what is wrong is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from davit.data.caption_files import find_captions, split_captions
from davit.evaluation.retrieval import RetrievalMetric
from davit.models.clip import ImageTextOutput
from davit.train.run import run
from runs import colour_folder, tiny_dense_recipe

TEXTS = {"blue/0.png": ["a blue one", "blue, and noisy"], "red/1.png": ["a red one"], "green/2.png": ["rot und grün"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    colour_folder(tmp_path / "images", images=3)
    return tmp_path


def pairs(root: Path) -> list[tuple[str, str]]:
    found = find_captions(root)
    return [(f"{path.parent.name}/{path.name}", c.text) for path, c in zip(found.paths, found.captions, strict=True)]


EXPECTED = [(file, text) for file, texts in TEXTS.items() for text in texts]


@pytest.mark.parametrize("kind", ["csv", "bare", "tsv", "txt", "jsonl", "list", "lists", "coco"])
def test_every_layout_gives_the_same_pairs(folder: Path, kind: str) -> None:
    rows = EXPECTED
    match kind:
        case "csv":
            lines = ["Image,caption", *(f'{file},"{text}"' for file, text in rows)]
            path = folder / "captions.csv"
        case "bare":
            lines, path = [f'{file},"{text}"' for file, text in rows], folder / "captions.csv"
        case "tsv":
            lines, path = ["filepath\ttitle", *(f"{f}\t{t}" for f, t in rows)], folder / "captions.tsv"
        case "txt":
            lines, path = ["caption,image", *(f'" {t} ",{f}' for f, t in rows)], folder / "captions.txt"
        case "jsonl":
            lines = [json.dumps({"file_name": f, "text": t}) for f, t in rows] + [""]
            path = folder / "captions.jsonl"
        case "list":
            lines, path = [json.dumps([{"image": f, "caption": t} for f, t in rows])], folder / "captions.json"
        case "lists":
            lines = [json.dumps([{"image": f, "caption": texts} for f, texts in TEXTS.items()])]
            path = folder / "captions.json"
        case _:
            ids = {file: 7 * i + 3 for i, file in enumerate(TEXTS)}
            coco = {
                "images": [{"id": i, "file_name": f} for f, i in ids.items()],
                "annotations": [{"id": n, "image_id": ids[f], "caption": t} for n, (f, t) in enumerate(rows)],
            }
            lines, path = [json.dumps(coco)], folder / "captions.json"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert pairs(folder) == pairs(path) == EXPECTED
    found = find_captions(folder)
    assert [caption.image for caption in found.captions] == [0, 0, 1, 2]
    assert found.captions[0].label == found.captions[1].label != found.captions[2].label
    assert found[0][0].size == (24, 20)
    assert found.notes == ()


def test_text_files_beside_pictures(folder: Path) -> None:
    for file, texts in TEXTS.items():
        (folder / "images" / file).with_suffix(".txt").write_text("\n".join(texts), encoding="utf-8")
    assert sorted(pairs(folder)) == sorted(EXPECTED)
    (note,) = find_captions(folder).notes
    assert "6 pictures without a caption are left out: images/blue/1.png, images/blue/2.png, images/green/0.png" in note


def test_labels_put_pictures_together(folder: Path) -> None:
    rows = ["image,caption,label", "blue/0.png,sky,cold", "red/1.png,fire,warm", "green/2.png,ice,cold", "red/0.png,x,"]
    (folder / "captions.csv").write_text("\n".join(rows))
    labels = [caption.label for caption in find_captions(folder).captions]
    assert labels[0] == labels[2]
    assert len(set(labels)) == 3


def test_empty_captions_are_counted_and_named(folder: Path) -> None:
    (folder / "captions.csv").write_text("image,caption\nblue/0.png,  \nred/1.png,red\nred/2.png,\n")
    found = find_captions(folder)
    assert len(found) == 1
    assert found.notes == (
        f"{folder / 'captions.csv'}: 2 pictures with an empty caption are left out: blue/0.png, red/2.png",
    )


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("captions.csv", "image,caption\nblue/9.png,a\nblue/8.png,b\n", "2 pictures that are not there: blue/9.png"),
        ("captions.csv", "image,words\nblue/0.png,a\n", "no column of captions.*it has image, words"),
        ("captions.csv", "words,caption\nblue/0.png,a\n", "names no column of files"),
        ("captions.csv", "", "holds no pictures with captions"),
        ("captions.jsonl", '{"image": "blue/0.png", "caption": "a"}\n{nonsense', "line 2: no JSON"),
        ("captions.jsonl", "[1]", "line 1: expected an object"),
        ("captions.json", '{"images": []}', "'annotations' is missing"),
        ("captions.json", "{", "no JSON"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, name: str, text: str, told: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=told) as error:
        find_captions(folder)
    assert name in str(error.value)


def test_nothing_there_and_two_tables(folder: Path) -> None:
    with pytest.raises(ValueError, match="is not there"):
        find_captions(folder / "nowhere.csv")
    (folder / "captions.xml").write_text("")
    with pytest.raises(ValueError, match="ends in one of"):
        find_captions(folder / "captions.xml")
    for name in ("captions.csv", "captions.tsv"):
        (folder / name).write_text("image,caption\n")
    with pytest.raises(ValueError, match=r"captions\.csv and captions\.tsv"):
        find_captions(folder)


def test_a_split_keeps_a_pictures_captions_together(folder: Path) -> None:
    (folder / "captions.jsonl").write_text("\n".join(json.dumps({"image": f, "caption": t}) for f, t in EXPECTED))
    first, second = split_captions(find_captions(folder), 0.3)
    assert {c.image for c in first.captions} | {c.image for c in second.captions} == {0, 1, 2}
    assert len({c.image for c in second.captions}) == 1
    assert not {c.image for c in first.captions} & {c.image for c in second.captions}
    with pytest.raises(ValueError, match="only picture"):
        split_captions(second, 0.3)


def test_a_picture_with_several_captions_counts_once() -> None:
    """Two pictures; the first has three captions. Its caption finds the wrong picture first, which is one stranger."""
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.6, 0.8], [0.9, 0.1], [0.8, 0.2], [0.95, 0.0]])
    targets = torch.tensor([[5, 0], [5, 0], [5, 0], [6, 1]])
    metric = RetrievalMetric()
    metric.update(ImageTextOutput(images, texts, torch.tensor(1.0)), targets)
    scores = metric.compute()
    assert scores["count"] == 2
    assert scores["image_to_text_r1"] == 0.0  # the first's best text is the second's; the second's is the first's
    assert scores["text_to_image_r1"] == 0.5  # the middle two find theirs
    assert scores["text_to_image_r5"] == 1.0


def test_a_run_learns_from_captions(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{c}/{i}.png,a {c} picture" for c in ("blue", "green", "red") for i in range(3)]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows, "red/0.png,"]))
    recipe = tiny_dense_recipe("digits.contrastive", data__source="captions", data__root=str(folder))
    recipe = replace(recipe, data=replace(recipe.data, image_size=32, batch_size=4))
    result = run(recipe, tmp_path / "run")
    assert result is not None
    assert result.metrics["count"] == 2
    assert "1 pictures with an empty caption" in capsys.readouterr().err
