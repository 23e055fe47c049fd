"""`davit explain`: its folder, its page in a browser, and what it says of what cannot be explained."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import davit
from colour_texts import fresh, saved
from davit.cli import main
from davit.explain import drawing, explain_page
from davit.explain.attention import record_attention
from davit.explain.grad_cam import grad_cam
from davit.explain.subject import places_of
from davit.explain.targets import find_targets
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.preprocessing import Preprocessing
from davit.weights.save import save
from foreign import randomise
from runs import colour_folder
from small_detectors import talkative
from test_report import read

CHROMIUM = shutil.which("chromium")
CONFIG = DaViTConfig(widths=(16, 16, 32, 32), depths=(1, 1, 2, 1), head_width=8, window=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    classifier = Classifier(ClassifierConfig(backbone=CONFIG, num_classes=3))
    randomise(classifier)
    classifier.preprocessing = Preprocessing(size=(96, 128), fit="squash")
    classifier.classes = ("blue", "green", "red </script>")
    path = tmp_path_factory.mktemp("explain") / "model.safetensors"
    save(classifier, path)
    return str(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return colour_folder(tmp_path / "pictures", images=1)


def explain(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    code = main(["explain", *map(str, arguments), "--json"])
    done = capsys.readouterr()
    return code, json.loads(done.out) if done.out else {}, done.err


def test_a_folder_of_pictures(model: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    out = tmp_path / "out"
    code, done, err = explain(pictures, "--model", model, "--out", out, "--top", 2, "--occlusion", capsys=capsys)
    assert code == 1
    assert "broken.png" in err
    assert (done["images"], done["failed"]) == (4, 1)
    assert done["bytes"] == (out / "index.html").stat().st_size < 3_000_000
    assert next(entry for entry in done["pictures"] if "error" in entry)["file"].endswith("broken.png")
    good = [entry for entry in done["pictures"] if "error" not in entry]
    assert [Path(entry["folder"]).name for entry in good] == ["0", "0-2", "0-3"]  # one name in three folders
    loaded = davit.load(model).eval()
    for entry in good:
        files = {path.name for path in Path(entry["folder"]).iterdir()}
        assert files == set(entry["written"])
        assert {"picture.png", "grad_cam_1.png", "grad_cam_2.png", "occlusion_2.png", "rollout_mean.png"} <= files
        assert sum(name.startswith("window_stage") for name in files) == 5
        assert sum(name.startswith("channels_stage") for name in files) == 5
        pixels = loaded.preprocessing(Image.open(entry["file"]))
        with torch.no_grad():
            scores = loaded(pixels[None])[0].softmax(-1)
        best = int(scores.argmax())
        assert entry["answer"]["top"][0] == {
            "label": loaded.classes[best],
            "index": best,
            "score": pytest.approx(float(scores[best]), abs=1e-5),
        }
        first = entry["targets"][0]
        assert (first["class"], first["label"]) == (best, loaded.classes[best])
        assert first["score"] == pytest.approx(float(scores[best]), abs=1e-5)
        target = find_targets(loaded, pixels)[0]
        cam = grad_cam(loaded, pixels, target)[first["stage"] - 1]
        shown = drawing.picture(pixels, loaded.preprocessing)
        wanted = drawing.overlay(shown, drawing.unit(cam), 4 * 2 ** (first["stage"] - 1), smooth=True, scale=3)
        written = np.asarray(Image.open(Path(entry["folder"]) / "grad_cam_1.png").convert("RGB")).astype(int)
        assert np.abs(written - np.asarray(wanted)).max() <= 1


def test_the_page_is_whole_and_self_contained(
    model: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert explain(pictures, "--model", model, "--out", out, capsys=capsys)[0] == 0
    page = (out / "index.html").read_text(encoding="utf-8")
    parsed = read(page)
    assert "http://" not in page
    assert "https://" not in page
    for tag, attrs in parsed.tags:
        for name in ("src", "href"):
            address = attrs.get(name) or "data:"
            assert address.startswith(("data:", "#")) or (tag == "a" and (out / address).is_dir())
    found = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert len(found) == 3
    first = json.loads(found[0])
    assert [(each["stage"], each["block"]) for each in first["windows"]] == [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0)]
    assert all(each["shown"] == each["heads"] for each in first["windows"])
    assert all(each["shown"] == each["groups"] and len(each["chosen"][0]) == 8 for each in first["channels"])
    assert {each["label"] for each in first["cams"]} == {"blue", "green", "red </script>"}


def test_pictures_beyond_the_page_s_room_have_their_folders(
    model: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain_page, "PAGE_BYTES", 1)
    out = tmp_path / "out"
    code, done, err = explain(pictures, "--model", model, "--out", out, "--blocks", "last", capsys=capsys)
    assert (code, done["failed"]) == (0, 0)
    assert err.count("is in its folder only, for the page is full") == 2
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("picture-data") == 1 + 1  # the element, and the script that looks for it
    assert "The page had no room for 2 more" in page
    assert (out / "0-3" / "picture.png").is_file()


def test_points_blocks_heads_and_groups(
    model: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, out = pictures / "blue" / "0.png", tmp_path / "out"  # 20 pixels high, 24 wide, squashed to 96 x 128
    asked = ["--point", "0,0", "19,23", "--blocks", "3.1,4", "--head", 2, "--group", 3, "--stage", 2]
    code, done, _ = explain(picture, "--model", model, "--out", out, *asked, capsys=capsys)
    assert code == 0
    (entry,) = done["pictures"]
    assert entry["points"] == [[0, 0], [19, 23]]
    names = set(entry["written"])
    for place in ("0,0", "19,23"):
        assert {f"window_stage3_block1_at_{place}.png", f"window_stage4_block1_at_{place}.png"} <= names
    assert {name for name in names if name.startswith("channels")} == {
        "channels_stage3_block1_group3.png",
        "channels_stage4_block1_group3.png",
    }
    loaded = davit.load(model).eval()
    pixels = loaded.preprocessing(Image.open(picture))
    seen = record_attention(loaded, pixels, [(2, 0)]).windows[0].at_pixel(93, 125)
    assert seen.query == (5, 7)
    drawn = drawing.overlay(drawing.picture(pixels, loaded.preprocessing), drawing.unit(seen.heads[1]), 16, scale=3)
    written = np.asarray(Image.open(out / "0" / "window_stage3_block1_at_19,23.png").convert("RGB")).astype(int)
    same = (np.abs(written - np.asarray(drawn)) <= 1).all(2)
    assert same[:190, :190].all()  # outside the window
    assert 0.9 < same[192:, 192:].mean() < 1  # and inside it but for the outlines
    (out / "0" / "grad_cam_1.png").unlink()
    code, done, _ = explain(picture, "--model", model, "--out", out, "--class", "green", capsys=capsys)
    assert [each["label"] for each in done["pictures"][0]["targets"]] == ["green"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "gren"], "unknown class 'gren'. Did you mean 'green'"),
        (["--class", "7"], "classes 0 to 2, and no class 7"),
        (["--blocks", "3.4"], "stage 3 has dual blocks 1 to 2, and no block 4"),
        (["--blocks", "5"], "stages 1 to 4, and no stage 5"),
        (["--blocks", "0.1"], "no stage 0"),
        (["--blocks", "first"], "all, last, or places such as 3 or 3.2"),
        (["--head", "5"], "up to 4 heads, and no head 5"),
        (["--blocks", "1", "--group", "3"], "up to 2 groups, and no group 3"),
        (["--head", "0"], "counted from 1"),
        (["--stage", "5"], "none of stage 5"),
        (["--point", "a,b"], "a row and a column"),
        (["--top", "0"], "--top must be at least 1"),
        (["--text", "a red bus"], "is no image-text model"),
        (["--labels", "a,b"], "labels are for image-text models"),
        (["--labels", "a,b", "--text", "c"], "one or the other"),
        (["--like", "missing.png"], "missing.png"),
        (["--occlusion", "--patches", "0"], "patches must be at least 1"),
    ],
)
def test_what_cannot_be_asked(
    model: str,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    picture = pictures / "blue" / "0.png"
    code = main(["explain", str(picture), "--model", model, "--out", str(tmp_path / "out"), *arguments])
    told = capsys.readouterr().err
    assert message in told
    assert code == (1 if "--class" in arguments and "7" in arguments else 2)


def test_points_outside_are_told_of_each_picture(
    model: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (100, 100)).save(pictures / "large.png")
    code, done, err = explain(pictures, "--model", model, "--out", tmp_path / "o", "--point", "50,60", capsys=capsys)
    assert (code, done["failed"]) == (1, 3)
    assert err.count("point 50,60 lies outside the image, which is 20 pixels high and 24 wide") == 3
    cropping = davit.load(model)
    cropping.preprocessing = Preprocessing.imagenet(64)
    save(cropping, tmp_path / "crop.safetensors")
    code, _, err = explain(
        pictures / "large.png", "--model", tmp_path / "crop.safetensors", "--out", tmp_path / "o", "--point", "1,50",
        capsys=capsys,
    )  # fmt: skip
    assert code == 1
    assert "point 1,50 is cropped off" in err


def test_exported_files_have_no_tensors_to_look_into(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = tmp_path / "model.onnx"
    exported.write_bytes(b"\x08\x0a")
    code = main(["explain", str(pictures), "--model", str(exported), "--out", str(tmp_path / "out")])
    assert code == 2
    assert "Explain the checkpoint that it was made from" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_likeness_to_texts_and_pictures(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, picture = saved(fresh(), tmp_path / "image_text.safetensors"), pictures / "blue" / "0.png"
    asked = ["--text", "a red picture", "--like", pictures / "red" / "0.png", "--occlusion"]
    code, done, _ = explain(picture, "--model", model, "--out", tmp_path / "out", *asked, capsys=capsys)
    assert code == 0
    text, like = done["pictures"][0]["targets"]
    assert (text["label"], text["class"], like["label"]) == ("a red picture", None, "0.png")
    loaded = davit.load(model).eval()
    with torch.no_grad():
        vectors = [
            loaded.embed_images(loaded.preprocessing(Image.open(path))[None])[0]
            for path in (picture, pictures / "red" / "0.png")
        ]
    assert like["score"] == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-4)
    assert done["pictures"][0]["answer"] is None
    code, done, _ = explain(picture, "--model", model, "--out", tmp_path / "out", "--labels", "red,blue", capsys=capsys)
    assert {each["label"] for each in done["pictures"][0]["targets"]} == {"red", "blue"}
    code, done, _ = explain(picture, "--model", model, "--out", tmp_path / "out", capsys=capsys)
    assert done["pictures"][0]["targets"] == []
    assert code == 0


def test_objects_and_backbones(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = talkative("retinanet")
    detector.preprocessing, detector.classes = Preprocessing(size=(64, 96), fit="within"), ("one", "two", "three")
    save(detector, tmp_path / "detector.safetensors")
    picture = pictures / "blue" / "0.png"
    model = tmp_path / "detector.safetensors"
    code, done, _ = explain(picture, "--model", model, "--out", tmp_path / "out", capsys=capsys)
    assert code == 0
    (entry,) = done["pictures"]
    assert len(entry["targets"]) == 3
    assert all(len(each["box"]) == 4 for each in entry["targets"])
    best = max(entry["answer"]["objects"], key=lambda found: found["score"])
    assert entry["targets"][0]["score"] == pytest.approx(best["score"], abs=1e-5)
    backbone = davit.create_backbone("davit_pico", window=4)
    backbone.preprocessing = None
    save(backbone, tmp_path / "backbone.safetensors")
    command = [picture, "--model", tmp_path / "backbone.safetensors", "--out", tmp_path / "out"]
    assert main(["explain", *map(str, command)]) == 2
    assert "give their side with --size" in capsys.readouterr().err
    code, done, _ = explain(*command, "--size", "64", capsys=capsys)
    assert (code, done["pictures"][0]["targets"]) == (0, [])
    code, done, _ = explain(*command, "--size", "64", "--like", picture, capsys=capsys)
    assert done["pictures"][0]["targets"][0]["score"] == pytest.approx(1.0, abs=1e-4)


def test_places_are_read_as_they_are_shown() -> None:
    assert places_of(["3.2", "1"], (1, 1, 3, 1)) == [(2, 1), (0, 0)]
    assert places_of(["3"], (1, 1, 3, 1)) == [(2, 0), (2, 1), (2, 2)]
    for text in ("", "3.", "a", "3.x", "-1"):
        with pytest.raises(ValueError, match="--blocks takes"):
            places_of([text], (1, 1, 3, 1))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_in_a_browser(model: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sync = pytest.importorskip("playwright.sync_api")
    out = tmp_path / "out"
    explain(pictures, "--model", model, "--out", out, "--occlusion", "--patches", 3, capsys=capsys)
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=[*flags, "--disable-sync", "--disable-quic"])
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url) if "://" in request.url[:8] and not
                request.url.startswith("file:") else None)  # fmt: skip
        page.goto((out / "index.html").as_uri())
        page.wait_for_selector("[data-window='0'] canvas")

        def pixels(selector: str) -> str:
            return page.eval_on_selector(selector, "board => board.toDataURL()")

        def changes(selector: str, act: Any) -> None:
            before = pixels(selector)
            act()
            page.wait_for_function(
                "([selector, before]) => document.querySelector(selector).toDataURL() !== before",
                arg=[selector, before], timeout=5000,
            )  # fmt: skip

        stage = "[data-window='2']"
        changes(f"{stage} .view canvas", lambda: page.click(f"{stage} .blocks button:first-of-type"))
        changes(f"{stage} .view canvas", lambda: page.click(f"{stage} .heads button:nth-of-type(3)"))
        assert page.inner_text(f"{stage} .says") == "head 2 of 4"
        page.focus("#windows .pad")
        changes("[data-rollout=position] canvas", lambda: [page.keyboard.press("ArrowUp") for _ in range(16)])
        changes("[data-heat] canvas", lambda: page.click("[data-cam] .targets button:nth-of-type(2)"))
        changes("[data-heat] canvas", lambda: page.click("[data-cam] .maps button:nth-of-type(1)"))
        assert "map of stage 1, 24 x 32" in page.inner_text("[data-heat] .says")
        changes(
            "[data-channel='3'] .matrix canvas", lambda: page.click("[data-channel='3'] .groups button:nth-of-type(2)")
        )
        page.click("[data-channel='3'] .tokens button:nth-of-type(1)")
        page.wait_for_function("document.querySelector(\"[data-channel='3'] .takes\").textContent.includes(' % from ')")
        changes("[data-covered] canvas", lambda: page.click("[data-sample='1']"))
        assert page.get_attribute("[data-sample='1']", "aria-pressed") == "true"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
    assert faults == []
