"""Classes by their names alone: predictor, predict and evaluate."""

import json
import os
import sys
from pathlib import Path

import open_clip
import pytest
import torch

from colour_texts import COLOURS, HEAD, fresh, plain_picture, saved, taught
from davit.cli import main
from davit.data.spoken import spoken
from davit.inference.predictor import Predictor
from davit.inference.zero_shot import Labels, fill, parse_labels, parse_templates, text_matrix, zero_shot
from davit.tokens import tokenize
from runs import colour_folder


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_folder(tmp_path_factory.mktemp("zero_shot") / "colours")


@pytest.fixture(scope="module")
def model(colours: Path) -> str:
    return saved(taught(colours), colours.parent / "model.safetensors")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_matrix_is_open_clips() -> None:
    """open_clip's own builder over the same towers, several templates, more classes than one of its batches."""
    model = fresh(3)
    names = tuple(f"thing {i}" for i in range(13))
    templates = ("a {}.", "many {} in one picture", "{}")

    class Theirs(torch.nn.Module):
        def encode_text(self, tokens: torch.Tensor, normalize: bool = False) -> torch.Tensor:
            vectors = model.text(tokens)
            return torch.nn.functional.normalize(vectors, dim=-1) if normalize else vectors

    theirs = open_clip.build_zero_shot_classifier(
        Theirs(),
        lambda texts: tokenize(texts, HEAD.text.context),
        names,
        [lambda name, t=template: t.format(name) for template in templates],
        num_classes_per_batch=5,
        device="cpu",
    )
    ours = text_matrix(model, Labels(names=names, templates=templates))
    torch.testing.assert_close(ours.T, theirs, rtol=1e-5, atol=1e-6)
    images = torch.randn(3, 3, 50, 37)
    logits = zero_shot(model, Labels(names=names, templates=templates))(images)
    with torch.no_grad():
        wanted = model.scale() * model.embed_images(images) @ theirs
    torch.testing.assert_close(logits.detach(), wanted, rtol=1e-4, atol=1e-4)


def test_the_matrix_is_kept_and_another_tower_or_a_damaged_file_makes_it_anew(tmp_path: Path) -> None:
    model, labels = fresh(), Labels(names=("a cat", "a dog"))
    first = text_matrix(model, labels)
    (kept,) = (tmp_path / "cache" / "davit" / "texts").iterdir()
    model.text.forward = None  # type: ignore[method-assign]  # nothing is computed again
    assert torch.equal(text_matrix(model, labels), first)
    other = fresh(1)
    assert not torch.allclose(text_matrix(other, labels), first)
    for damage in (b"", kept.read_bytes()[:-4], bytes(len(kept.read_bytes()))):
        kept.write_bytes(damage)
        assert torch.equal(text_matrix(fresh(), labels), first)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    assert text_matrix(fresh(), Labels(names=("a cat",))).shape == (1, 16)


def test_names_with_an_article_of_their_own_lose_the_templates() -> None:
    assert fill("a photo of a {}.", "the red bus") == "a photo of the red bus."
    assert fill("a photo of a {}.", "red bus") == "a photo of a red bus."
    assert fill("a {}", "an eight") == "an eight"
    assert fill("a bad photo of the {}.", "A cat") == "a bad photo of A cat."
    assert fill("{} in idea", "a cat") == "a cat in idea"


def test_what_cannot_be_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n\n a red bus \n", encoding="utf-8")
    assert parse_labels(str(tmp_path / "names.txt")).names == ("cat", "a red bus")
    assert parse_labels(" cat, dog ,").names == ("cat", "dog")
    assert len(parse_templates("imagenet")) == 80
    assert len(parse_templates("simple")) == 7
    (tmp_path / "templates.txt").write_text("a {}\nthe {}\n", encoding="utf-8")
    assert parse_templates(str(tmp_path / "templates.txt")) == ("a {}", "the {}")
    for given, told in ((",", "at least one"), ("cat,cat", "cat more than once")):
        with pytest.raises(ValueError, match=told):
            parse_labels(given)
    with pytest.raises(ValueError, match="simple or imagenet"):
        parse_labels("cat", "photos")
    with pytest.raises(ValueError, match=r"has \{\} once"):
        parse_labels("cat", "{} and {}")


def test_folders_are_said_as_one_would_say_them() -> None:
    assert spoken(("golden_retriever", "bus")) == ("golden retriever", "bus")
    assert spoken(("n01440764", "n02128385")) == ("tench", "leopard")
    assert spoken(("n01440764", "mine")) == ("n01440764", "mine")


def test_a_predictor_names_colours_that_no_class_list_told_it(model: str, tmp_path: Path) -> None:
    predictor = Predictor.load(model, labels=COLOURS)
    pictures = [plain_picture(tmp_path / f"{i}.png", colour) for i, colour in enumerate([(9, 9, 220), (230, 20, 9)])]
    blue, red = predictor(pictures)
    assert (blue.labels[0], red.labels[0]) == ("blue", "red")
    assert sum(blue.scores) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_predict_and_evaluate(
    model: str, colours: Path, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(plain_picture(tmp_path / "green.png", (10, 200, 30)))
    command = ["predict", picture, "--model", model, "--labels", "red,green,a blue", "--json", "--backend", backend]
    assert main(command) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["top"][0]["label"] == "green"
    command = ["evaluate", model, "--data", str(colours), "--zero-shot", "--json", "--backend", backend]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["top1"] == 1.0
    assert report["count"] == 24
    assert set(report["per_class"]) == set(COLOURS)


def test_evaluate_scores_retrieval_among_captions(
    model: str, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{path},a {path.parent.name} picture,{path.parent.name}" for path in sorted(colours.rglob("*.png"))]
    table = tmp_path / "captions.csv"
    table.write_text("\n".join(["file,caption,label", *rows]), encoding="utf-8")
    assert main(["evaluate", model, "--data", str(table), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["image_to_text_r1"] == report["text_to_image_r1"] == 1.0
    assert (report["count"], report["captions"]) == (24, 24)
    assert main(["evaluate", model, "--data", str(table)]) == 0
    assert "image to text 100.00 %" in capsys.readouterr().out


def test_wrong_uses_are_told(model: str, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import davit
    from davit.weights.save import save

    classifier = davit.create_model("davit_pico", num_classes=3)
    save(classifier, tmp_path / "classifier.safetensors")
    picture, other = str(next(colours.rglob("*.png"))), str(tmp_path / "classifier.safetensors")
    for command, told in (
        (["predict", picture, "--model", model], "--labels"),
        (["predict", picture, "--model", other, "--labels", "cat"], "labels are for image-text models"),
        (["predict", picture, "--model", model, "--templates", "a {}"], "give both"),
        (["evaluate", other, "--data", str(colours), "--zero-shot"], "labels are for image-text models"),
        (["evaluate", model, "--data", str(colours), "--templates", "a {}"], "add --zero-shot"),
        (["evaluate", model, "--data", str(tmp_path / "none.csv")], "is not there"),
        (["evaluate", model, "--data", str(colours), "--backend", "native"], "takes no --backend native"),
        (["evaluate", model, "--data", str(colours), "--probe", "knn", "--zero-shot"], "takes no --zero-shot"),
        (["evaluate", other, "--data", str(colours), "--probe", "knn", "--crop", "0.9"], "takes no --crop"),
    ):
        assert main(command) == 2
        assert told in capsys.readouterr().err


def test_without_open_clip_what_to_install_is_told(
    model: str, colours: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from davit import tokens

    tokens.tokenizer.cache_clear()
    for module in ("tokenizer", "zero_shot_metadata"):
        monkeypatch.setitem(sys.modules, f"open_clip.{module}", None)
    picture = str(next(colours.rglob("*.png")))
    for more in (["--labels", "a cat"], ["--labels", "a cat", "--templates", "imagenet"]):
        assert main(["predict", picture, "--model", model, *more]) == 2
        assert "pip install 'davit[image-text]'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="image-text"):
        spoken(("n01440764",))
