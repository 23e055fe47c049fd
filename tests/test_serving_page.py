"""The page of `davit serve`, in Chromium, against the server as a process."""

import base64
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from page_models import HOSTILE, KINDS, NAMES, write_models

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
)
KEY = "k3y"
WIDE, PHONE = (1200, 900), (390, 844)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with a model of each kind, which asks for a key."""
    folder = tmp_path_factory.mktemp("page")
    models = [part for name, file in write_models(folder).items() for part in ("--model", f"{name}={file}")]
    (folder / "keys").write_text(KEY)
    command = [sys.executable, "-m", "davit", "serve", *models, "--port", "0", "--backend", "eager", "--json"]
    command += ["--threads", "1", "--workers", "1", "--deadline", "60", "--api-keys", str(folder / "keys")]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (folder / "log").read_text()
            yield json.loads(line)["url"]
        finally:
            process.terminate()
            assert process.wait(30) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


@dataclass
class Visit:
    """A page that is open, and what happened in it.

    Attributes:
        page: of Playwright.
        url: of the server.
        told: errors of the page and of its console.
        asked: addresses of all requests.
        refusals: whether the browser may note answers with an error status; it does so by itself.
    """

    page: Any
    url: str
    told: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    refusals: bool = False

    def choose(self, *files: Path, model: str | None = None) -> None:
        """Take a model, give it pictures and wait for the answers."""
        if model:
            self.page.select_option("#model", model)
        self.page.set_input_files("#files", files)
        self.wait()

    def wait(self) -> None:
        """Wait for the answers of all pictures."""
        self.page.locator("#viewer").wait_for()
        self.page.locator("#progress").wait_for(state="hidden", timeout=60_000)
        self.page.locator("#panel h2").wait_for()

    def attention(self) -> None:
        """Go to the attention of the picture."""
        self.page.get_by_role("button", name="Attention", exact=True).click()
        self.page.locator("#pad canvas").wait_for(timeout=60_000)

    def copied(self, details: str) -> str:
        """What the copy button gives."""
        self.page.locator(f"{details} summary").click()
        self.page.locator(f"{details} .copy").click()
        self.page.locator(details).get_by_text("Copied").wait_for()
        return self.page.evaluate("navigator.clipboard.readText()")

    def pixels(self, selector: str) -> np.ndarray:
        """(height, width, 4) of a canvas."""
        return decoded(self.page.locator(selector).evaluate("board => board.toDataURL()"))

    def overflow(self) -> int:
        """Pixels that the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - innerWidth")


@pytest.fixture
def visit(server: str, browser: Any) -> Iterator[Callable[..., Visit]]:
    """Open the page; at the end nothing must have gone elsewhere, and no error have been told."""
    made: list[tuple[Any, Visit]] = []

    def open_page(size: tuple[int, int] = WIDE, key: str | None = KEY, **options: Any) -> Visit:
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(
            viewport=viewport, permissions=["clipboard-read", "clipboard-write"], base_url=server, **options
        )
        if key is not None:
            context.add_init_script(f"sessionStorage.setItem('davit-key', '{key}')")
        page = context.new_page()
        opened = Visit(page, server)
        page.on("pageerror", lambda error: opened.told.append(str(error)))
        page.on("console", lambda message: opened.told.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: opened.asked.append(request.url))
        made.append((context, opened))
        page.goto(server)
        return opened

    yield open_page
    for context, opened in made:
        assert opened.page.evaluate("window.hacked") is None
        context.close()
        assert [line for line in opened.told if not (opened.refusals and "Failed to load resource" in line)] == []
        hosts = {urlsplit(address).netloc for address in opened.asked if not address.startswith(("data:", "blob:"))}
        assert hosts == {urlsplit(server).netloc}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A smooth picture of 131 x 97 pixels."""
    return smooth(tmp_path / "smooth.png", 0)


def smooth(path: Path, seed: int, width: int = 131, height: int = 97) -> Path:
    shift = np.random.default_rng(seed).uniform(0, 6, (3, 2))
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 17 + a) * np.cos(y / 23 + b) for a, b in shift]
    Image.fromarray((127 + 120 * np.stack(waves, -1)).round().astype(np.uint8)).save(path)
    return path


def ask(server: str, verb: str, model: str, file: Path, **parameters: Any) -> Any:
    answer = httpx.post(
        f"{server}/v1/{verb}",
        params={"model": model, **parameters},
        files={"file": (file.name, file.read_bytes())},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def decoded(uri: str) -> np.ndarray:
    """(height, width, 4) of a data URI."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA"))


ASKED = {"classify": {"top": 5}, "detect": {"threshold": 0.5}, "segment": {"map": 1}, "embed": {}}


@pytest.mark.parametrize("model", KINDS)
def test_answers_are_the_servers(visit: Callable[..., Visit], server: str, picture: Path, model: str) -> None:
    page = visit()
    page.choose(picture, model=model)
    answer = ask(server, "predict", model, picture, **ASKED[model])
    assert json.loads(page.copied("#answer")) == answer
    (result,) = answer["results"]
    rows = page.page.locator(".row").all_inner_texts()
    if model == "classify":
        wanted = [(each["label"], f"{100 * each['score']:.1f} %") for each in result["top"]]
    elif model == "detect":
        wanted = [(each["label"], f"{each['score']:.2f}") for each in result["objects"]]
        assert len(wanted) > 5
    elif model == "segment":
        wanted = [(name, f"{100 * share:.1f} %") for name, share in result["classes"].items()]
        assert len(wanted) == len(NAMES)
    else:
        wanted = []
        assert "128 numbers" in page.page.locator("#panel").inner_text()
        with page.page.expect_download() as download:
            page.page.get_by_text("Download as JSON").click()
        assert json.loads(download.value.path().read_text()) == result["embedding"]
    assert [tuple(row.split("\n")) for row in rows] == wanted


def test_the_curl_line_gives_the_same(visit: Callable[..., Visit], tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl on this machine")
    file = smooth(tmp_path / 'it\'s "odd"; $HOME, back\\slash.png', 1)
    page = visit()
    page.choose(file, model="detect")
    page.page.locator("input[type=range]").fill("0.9")
    answer, line = json.loads(page.copied("#answer")), page.copied("#request")
    run = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path, env={"DAVIT_KEY": KEY, "PATH": str(Path(curl).parent)}, capture_output=True
    )
    told = json.loads(run.stdout)
    assert told["results"][0].pop("file")  # clients write odd names each in their way
    answer["results"][0].pop("file")
    assert told == answer
    assert "threshold=0.9" in line
    assert KEY not in line


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_pictures_are_dropped_and_pasted(visit: Callable[..., Visit], picture: Path, way: str) -> None:
    page = visit()
    page.page.locator("#choose-model").wait_for()
    event = "new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})"
    if way == "paste":
        event = "new ClipboardEvent('paste', {clipboardData: data, bubbles: true})"
    page.page.evaluate(
        f"""bytes => {{
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "given.png", {{type: "image/png"}}));
          document.body.dispatchEvent({event});
        }}""",
        list(picture.read_bytes()),
    )
    page.wait()
    assert page.page.locator("#status").inner_text().startswith("given.png: ")


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_boxes_and_masks_lie_where_the_answer_says(
    visit: Callable[..., Visit], server: str, picture: Path, size: tuple[int, int]
) -> None:
    page = visit(size)
    page.choose(picture, model="detect")
    (result,) = ask(server, "predict", "detect", picture, threshold=0.5)["results"]
    sheet = page.page.locator("#frame .sheet").bounding_box()
    scale = sheet["width"] / 131
    assert sheet["height"] == pytest.approx(97 * scale, abs=1)
    boxes = page.page.locator(".box").all()[::-1]  # the best is drawn last
    boxes = [box for box in boxes if box.is_visible()]
    assert len(boxes) == len(result["objects"]) > 3
    for box, found in zip(boxes, result["objects"], strict=True):
        place = box.bounding_box()
        left, top, right, bottom = (edge * scale for edge in found["box"])
        drawn = (place["x"] - sheet["x"], place["y"] - sheet["y"], place["width"], place["height"])
        assert drawn == pytest.approx((left, top, right - left, bottom - top), abs=1)
        assert box.inner_text() in ("", f"{found['label']} {found['score']:.2f}")
    covered = np.any([coco_masks.decode(found["mask"]) for found in result["objects"]], 0)
    assert 0.05 < covered.mean() < 0.95
    assert np.array_equal(page.pixels("#frame .sheet canvas >> nth=1")[:, :, 3] > 0, covered)


def test_the_threshold_filters_at_once_and_rows_light_objects(
    visit: Callable[..., Visit], server: str, picture: Path
) -> None:
    page = visit()
    page.choose(picture, model="detect")
    asked = len(page.asked)
    scores = [each["score"] for each in ask(server, "predict", "detect", picture, threshold=0)["results"][0]["objects"]]
    middle = round(sorted(scores)[len(scores) // 2], 2)
    page.page.locator("input[type=range]").fill(str(middle))
    left = [score for score in scores if score >= middle]
    shown = [row.inner_text() for row in page.page.locator(".row b").all() if row.is_visible()]
    assert shown == [f"{score:.2f}" for score in left]
    assert 0 < len(left) < len(scores)
    assert sum(box.is_visible() for box in page.page.locator(".box").all()) == len(left)
    assert len(json.loads(page.copied("#answer"))["results"][0]["objects"]) == len(left)
    assert len(page.asked) == asked

    before = page.pixels("#frame .sheet canvas >> nth=1")
    page.page.locator(".row").nth(0).focus()
    assert page.page.locator(".box.lit").count() == 1
    assert page.page.locator(".box.lit .tag").inner_text().endswith(f"{scores[0]:.2f}")
    assert not np.array_equal(page.pixels("#frame .sheet canvas >> nth=1"), before)
    page.page.locator(".row").nth(0).blur()
    assert page.page.locator(".box.lit").count() == 0
    assert np.array_equal(page.pixels("#frame .sheet canvas >> nth=1"), before)


def test_masks_are_read_as_pycocotools_does(visit: Callable[..., Visit]) -> None:
    page = visit()
    rng = np.random.default_rng(0)
    masks = [np.zeros((5, 7)), np.ones((5, 7)), np.ones((1, 1)), np.eye(9)]
    for _ in range(40):
        height, width = rng.integers(1, 90, 2)
        blocks = rng.random((height // 9 + 1, width // 9 + 1)) < rng.random()
        noise = rng.random((height, width)) < rng.choice([0, 0.02, 0.5])
        masks.append(np.kron(blocks, np.ones((9, 9)))[:height, :width].astype(bool) ^ noise)
    masks.append(np.kron(rng.random((3, 2)) < 0.5, np.ones((300, 400))))  # long runs
    for step in (1, 3):
        coded = [coco_masks.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
        found = page.page.evaluate(
            """async ([masks, step]) => {
              const { readMask } = await import("/rle.js");
              return masks.map((mask) => {
                const read = readMask(mask, step);
                return read && { ...read, inside: read.inside.join("") };
              });
            }""",
            [[{"size": one["size"], "counts": one["counts"].decode()} for one in coded], step],
        )
        for mask, read in zip(masks, found, strict=True):
            drawn = np.zeros_like(mask[::step, ::step])
            if read:
                inside = np.array(list(read["inside"]), int).reshape(read["height"], read["width"])
                assert inside.any(0)[[0, -1]].all()
                drawn[read["top"] :, read["left"] :][: read["height"], : read["width"]] = inside
            assert np.array_equal(drawn, mask[::step, ::step])


def test_the_map_has_the_palettes_colours_and_names_what_is_pointed_at(
    visit: Callable[..., Visit], server: str, picture: Path
) -> None:
    page = visit()
    page.choose(picture, model="segment")
    (result,) = ask(server, "predict", "segment", picture, map=1)["results"]
    wanted = decoded(result["map"])
    page.page.locator(".sheet canvas >> nth=1").wait_for()
    assert np.array_equal(page.pixels("#frame .sheet canvas >> nth=1"), wanted)
    names = {tuple(bytes.fromhex(colour[1:])): name for name, colour in result["colours"].items()}
    sheet = page.page.locator("#frame .sheet")
    scale = sheet.bounding_box()["width"] / 131
    borders = np.argwhere((wanted[:, 1:] != wanted[:, :-1]).any(-1))  # left of them is another class
    assert len(borders) > 50
    for row, column in np.concatenate([borders[::40], np.add(borders[::40], [0, 1])]).tolist():
        name = names[tuple(wanted[row, column, :3].tolist())]
        sheet.hover(position={"x": (column + 0.5) * scale, "y": (row + 0.5) * scale})
        assert page.page.locator(".best").inner_text() == name
        assert page.page.locator(".row.lit span").inner_text() == name
    shown = page.pixels("#frame .sheet canvas >> nth=1")[:, :, 3]
    same = (wanted == wanted[row, column]).all(-1)
    assert (shown[same] == 255).all()
    assert (shown[~same] < 60).all()
    page.page.locator("input[type=range]").fill("0.25")
    assert page.page.locator(".sheet canvas >> nth=1").evaluate("c => getComputedStyle(c).opacity") == "0.25"


def test_pointing_shows_the_window_attention_of_the_payload(
    visit: Callable[..., Visit], server: str, picture: Path
) -> None:
    page = visit()
    page.choose(picture, model="classify")
    page.attention()
    data = ask(server, "explain", "classify", picture)
    image = decoded(data["image"])[:, :, :3].astype(float)
    height, width = image.shape[:2]
    pad = page.page.locator("#pad")
    box = pad.bounding_box()
    for index, stage in enumerate(data["windows"][:3]):
        page.page.get_by_role("button", name=f"Stage {index + 1}", exact=True).click()
        sprite, P, unit = decoded(stage["sprite"]).astype(float), stage["window"], stage["stride"]
        for y, x in ((10, 12), (61, 77), (95, 127)):
            pad.hover(position={"x": (x + 0.5) / width * box["width"], "y": (y + 0.5) / height * box["height"]})
            row, column = y // unit // stage["step"], x // unit // stage["step"]
            i, j = stage["rows"][row], stage["columns"][column]
            top, left = i // P * P, j // P * P
            down, across = min(P, stage["side"][0] - top), min(P, stage["side"][1] - left)
            drawn = page.pixels("#pad canvas")
            for head in range(stage["shown"] + 1):
                tile = sprite[(head * len(stage["rows"]) + row) * P :, column * P :][:down, :across]
                small = page.pixels(f"#heads button >> nth={head} >> canvas")[4::8, 4::8, :3].astype(float)
                assert np.abs(small[:down, :across] - tile[..., :3] * tile[..., 3:] / 255).max() <= 2
                if head:
                    assert np.unique(tile.reshape(-1, 4), axis=0).shape[0] > 2  # or the test would see nothing
                    continue
                for a in range(down):
                    for b in range(across):
                        if (top + a, left + b) == (i, j):
                            continue  # outlined
                        assert differs(drawn, image, tile[a, b], top + a, left + b, unit) <= 8


def differs(drawn: np.ndarray, image: np.ndarray, heat: np.ndarray, row: int, column: int, stride: int) -> float:
    """By how much the middle of a position differs from heat (4,) over the dimmed picture, in levels of 255."""
    scale = len(drawn) // len(image)
    assert drawn.shape[:2] == (scale * image.shape[0], scale * image.shape[1])
    y, x = int((row + 0.5) * stride), int((column + 0.5) * stride)
    under = 0.55 * image[y - 1 : y + 1, x - 1 : x + 1].mean((0, 1))
    share = heat[3] / 255
    return float(np.abs(drawn[y * scale, x * scale, :3] - share * heat[:3] - (1 - share) * under).max())


def test_channels_grad_cam_and_rollout_are_those_of_the_payload(
    visit: Callable[..., Visit], server: str, picture: Path
) -> None:
    page = visit()
    page.choose(picture, model="classify")
    page.attention()
    data = ask(server, "explain", "classify", picture)
    page.page.get_by_role("button", name="Stage 2", exact=True).click()
    page.page.get_by_role("button", name="Group 3", exact=True).click()
    stage = data["channels"][1]
    D, (h, w) = stage["channels"], stage["side"]
    wanted = decoded(stage["affinity"])[:, 2 * D : 3 * D]
    assert np.array_equal(page.pixels("#affinity canvas")[::8, ::8], wanted)
    maps = decoded(stage["maps"])
    tiles = page.page.locator("#maps button")
    assert tiles.all_inner_texts() == [str(channel) for channel in stage["chosen"][2]] * 2
    for after in (0, 1):
        tile = maps[(2 * 2 + after) * h :, 3 * w :][:h, :w]
        drawn = page.pixels(f"#maps button >> nth={8 * after + 3} >> canvas")
        scale = len(drawn) // h
        assert np.array_equal(drawn[::scale, ::scale], tile)
    plain = page.pixels("#pad canvas")
    tiles.nth(11).hover()
    channel, sources = stage["chosen"][2][3], stage["top"][2][3]
    told = ", ".join(f"{share:.0f} % from {source}" for source, share in sources)
    assert page.page.locator("#says").inner_text() == f"Channel {channel} takes {told}"
    assert not np.array_equal(page.pixels("#pad canvas"), plain)
    page.page.mouse.move(0, 0)
    assert np.array_equal(page.pixels("#pad canvas"), plain)

    page.page.get_by_role("button", name="Rollout").click()
    pad = page.page.locator("#pad").bounding_box()
    rollout, image = data["rollout"], decoded(data["image"])[:, :, :3].astype(float)
    page.page.locator("#pad").hover(position={"x": pad["width"] * 0.9, "y": pad["height"] * 0.1})
    th, tw = rollout["tile"]
    tile = decoded(rollout["tiles"])[:th, -tw:].astype(float)
    drawn = page.pixels("#pad canvas")
    for a, b in ((th - 2, 1), (th // 2, tw // 2), (1, 1)):
        assert differs(drawn, image, tile[a, b], a, b, 4) <= 8

    page.page.get_by_role("button", name="Result", exact=True).click()
    page.page.get_by_role("button", name="grey heron").click()
    page.page.get_by_text("grey heron: ").wait_for()
    cam = ask(server, "explain", "classify", picture, **{"class": 1})["cam"]
    assert page.page.locator("#says").inner_text() == f"grey heron: {100 * cam['score']:.1f} %"
    assert page.page.locator("#class").input_value() == "1"
    assert json.loads(page.copied("#answer"))["cam"]["class"] == 1


def test_embeddings_are_compared(visit: Callable[..., Visit], server: str, tmp_path: Path) -> None:
    files = [smooth(tmp_path / f"{name}.png", seed) for seed, name in enumerate("abc")]
    page = visit()
    page.choose(*files, model="embed")
    vectors = np.array([ask(server, "predict", "embed", file)["results"][0]["embedding"] for file in files])
    cells = page.page.locator("#below td").all_inner_texts()[1:]
    assert np.array(cells, float).reshape(3, 3) == pytest.approx(vectors @ vectors.T, abs=0.006)
    nearest = ["abc"[i] for i in np.argsort(-(vectors @ vectors[0])) if i]
    assert [name[0] for name in page.page.locator(".row span").all_inner_texts()] == nearest


def test_all_by_keyboard(visit: Callable[..., Visit], tmp_path: Path) -> None:
    files = [smooth(tmp_path / f"{name}.png", seed) for seed, name in enumerate("abc")]
    page = visit()
    keys, focused = page.page.keyboard, page.page.locator(":focus")
    page.page.on("filechooser", lambda _: None)  # Playwright begins to intercept late otherwise
    page.page.locator("#choose-model").wait_for()
    keys.press("Tab")
    assert focused.get_attribute("id") == "model"
    keys.press("ArrowDown")
    assert page.page.locator("#model").input_value() == "detect"
    keys.press("Tab")
    assert focused.get_attribute("id") == "files"
    assert page.page.locator("#drop").evaluate("each => getComputedStyle(each).outlineStyle") == "solid"
    with page.page.expect_file_chooser() as chooser:
        keys.press("Enter")
    chooser.value.set_files(files)
    page.wait()

    keys.press("Tab")
    assert "a.png" in focused.inner_text()
    keys.press("ArrowRight")
    assert "b.png" in focused.inner_text()
    assert focused.get_attribute("aria-current") == "true"
    page.page.get_by_text("b.png: ").wait_for()
    keys.press("Delete")
    assert page.page.locator("#thumbs li").count() == 2
    assert "c.png" in focused.inner_text()
    page.page.get_by_text("c.png: ").wait_for()

    seen: list[str] = []
    while "row" not in (focused.get_attribute("class") or ""):
        keys.press("Tab")
        seen.append(focused.evaluate("each => each.id || each.textContent"))
        assert focused.evaluate("each => each.matches(':focus-visible')")
        assert len(seen) < 20, seen
    assert page.page.locator(".box.lit").count() == 1
    keys.press("Enter")
    assert focused.get_attribute("aria-pressed") == "true"

    while focused.inner_text() != "Attention":
        keys.press("Shift+Tab")
    keys.press("Enter")
    page.page.locator("#pad canvas").wait_for(timeout=60_000)
    keys.press("Tab")
    assert focused.get_attribute("id") == "pad"
    before = page.page.locator("#says").inner_text()
    keys.press("ArrowDown")
    keys.press("ArrowRight")
    after = page.page.locator("#says").inner_text()
    numbers = [[int(word.strip(",:")) for word in text.split()[1:4:2]] for text in (before, after)]
    assert numbers[1] == [numbers[0][0] + 1, numbers[0][1] + 1]
    assert page.page.locator("#status").inner_text() == after


def test_names_of_files_and_classes_are_only_text(visit: Callable[..., Visit], tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "") + ".png"
    files = [smooth(tmp_path / name, 0), smooth(tmp_path / "b.png", 1)]
    page = visit()
    for model in KINDS:
        page.page.locator("#choose-model").wait_for()
        page.choose(*files, model=model)
        page.attention()
        page.page.get_by_role("button", name="Result", exact=True).click()
        page.page.locator("#panel h2").wait_for()
        assert name in page.page.locator("#status").inner_text()
    assert page.page.locator("main img").count() == 0
    page.page.locator("#clear").click()
    assert page.page.locator("#strip").is_hidden()


def test_a_broken_picture_has_its_reason_beside_it(visit: Callable[..., Visit], picture: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.read_bytes()[:60])
    note = tmp_path / "note.txt"
    note.write_text("no picture")
    page = visit()
    page.refusals = True
    page.choose(picture, broken, note)
    assert "smooth.png: " in page.page.locator("#status").inner_text()
    for file, kind in ((broken, "image_damaged"), (note, "unsupported_format")):
        page.page.get_by_role("button", name=f"{file.name}, not answered").click()
        page.page.locator(".warning").wait_for()
        assert page.page.locator(".warning code").inner_text() == kind
        message = page.page.locator(".warning p").first.inner_text()
        assert message.startswith(f"{file.name}: ")
        assert page.page.locator("#status").inner_text() == f"{file.name}: {message}"
        assert page.page.get_by_role("button", name="Try again").is_visible()


def test_a_busy_server_is_asked_again(visit: Callable[..., Visit], picture: Path) -> None:
    page = visit()
    page.refusals = True
    left, seen = [2], []

    def refuse(route: Any) -> None:
        seen.append(1)
        if left[0]:
            left[0] -= 1
            body = json.dumps({"error": {"type": "overloaded", "message": "too much"}})
            route.fulfill(status=503, headers={"Retry-After": "1", "Content-Type": "application/json"}, body=body)
        else:
            route.continue_()

    page.page.route("**/v1/predict*", refuse)
    page.page.set_input_files("#files", picture)
    page.page.get_by_text("The server is busy; the next try comes in 1 s").wait_for()
    page.wait()
    assert page.page.locator(".row").count() == len(NAMES)
    assert len(seen) == 3

    page.page.unroute("**/v1/predict*")
    page.page.route("**/v1/predict*", lambda route: route.abort())
    page.page.set_input_files("#files", picture)
    page.page.get_by_text("is the server still running").first.wait_for()
    page.page.unroute("**/v1/predict*")
    page.page.get_by_role("button", name="Try again").click()
    page.page.locator(".row").first.wait_for()


def test_the_key_is_asked_for_and_kept_in_the_tab(visit: Callable[..., Visit], picture: Path) -> None:
    page = visit(key=None)
    page.refusals = True
    field = page.page.get_by_label("API key")
    field.fill("wrong")
    page.page.keyboard.press("Enter")
    page.page.get_by_text("does not know the last one").wait_for()
    field.fill(KEY)
    page.page.get_by_role("button", name="Use it").click()
    page.page.locator("#choose-model").wait_for()
    page.choose(picture)
    assert page.page.locator(".row").count() == len(NAMES)
    assert page.page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    page.page.reload()
    page.page.locator("#choose-model").wait_for()
    assert page.page.locator("dialog").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_it_fits_and_can_be_read(visit: Callable[..., Visit], tmp_path: Path, scheme: str) -> None:
    files = [smooth(tmp_path / ("long" * 20 + f"{seed}.png"), seed, 97 + 300 * seed, 131) for seed in range(4)]
    page = visit(PHONE, color_scheme=scheme, has_touch=True, is_mobile=True, reduced_motion="reduce")
    for model in KINDS:
        page.page.locator("#choose-model").wait_for()
        page.choose(*files[: 4 if model == "classify" else 1], model=model)
        for details in ("#answer", "#request"):
            page.page.locator(details).evaluate("each => { each.open = true; }")
        assert page.overflow() == 0
        assert low_contrast(page) == []
        page.attention()
        assert page.overflow() == 0
        assert low_contrast(page) == []
        for share, first in ((0.1, True), (0.9, False)):
            pad = page.page.locator("#pad").bounding_box()
            page.page.locator("#pad").tap(position={"x": share * pad["width"], "y": share * pad["height"]})
            assert page.page.locator("#says").inner_text().startswith("Row 1, column 1:") == first
        page.page.get_by_role("button", name="Result", exact=True).click()
        page.page.locator("#panel h2").wait_for()


def low_contrast(page: Visit) -> list[str]:
    """Texts that WCAG 2 AA would call hard to read; those over pictures have a ground of their own."""
    return page.page.evaluate(
        """() => {
          const board = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
          const parts = (colour) => {
            board.clearRect(0, 0, 1, 1);
            board.fillStyle = colour;
            board.fillRect(0, 0, 1, 1);
            return [...board.getImageData(0, 0, 1, 1).data];
          };
          const light = (rgb) => rgb.map((value) => value / 255)
            .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
            .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
          const ground = (each) => {
            for (let at = each; at; at = at.parentElement) {
              const found = parts(getComputedStyle(at).backgroundColor);
              if (found[3] > 200) return found.slice(0, 3);
            }
            return parts("canvas").slice(0, 3);
          };
          return [...document.querySelectorAll("body *")].filter((each) =>
            each.checkVisibility() && [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
            .filter((each) => !each.disabled && !each.closest("option, select"))
            .map((each) => {
              const [a, b] = [parts(getComputedStyle(each).color).slice(0, 3), ground(each)].map(light);
              return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), each.textContent.slice(0, 40)];
            })
            .filter(([ratio]) => ratio < 4.5)
            .map(([ratio, text]) => `${ratio.toFixed(2)} ${text}`);
        }"""
    )


def test_turned_pictures_stand_upright(visit: Callable[..., Visit], server: str, tmp_path: Path) -> None:
    """The picture on the page and the answer's boxes agree about what EXIF says is up."""
    file = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(smooth(tmp_path / "plain.png", 3)).save(file, exif=exif)
    page = visit()
    page.choose(file, model="detect")
    (result,) = ask(server, "predict", "detect", file)["results"]
    assert (result["width"], result["height"]) == (97, 131)
    page.page.locator("#frame canvas[role=img]").wait_for()
    assert page.pixels("#frame .sheet canvas >> nth=0").shape == (131, 97, 4)


def test_the_page_is_small_and_writes_no_markup() -> None:
    from davit.explain.page import drawing_script
    from davit.serving.assets import page_files

    page = page_files(drawing_script())
    assert {"/", "/page.css", "/page.js", "/explorer_draw.js"} < set(page)
    assert sum(len(content) for content, _ in page.values()) < 75_000
    for content, _ in page.values():
        for word in (b"innerHTML", b"insertAdjacentHTML", b"document.write", b"eval(", b" style=", b"https://"):
            assert word not in content
