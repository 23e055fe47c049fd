"""What notebooks show of results."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import sync_playwright

from davit.colours import class_colour
from davit.structures import Classification, Detections, Embedding, Segmentation

HOSTILE = "<img src=x onerror=\"document.title='taken'\">'&\u202e\n"
HEIGHT, WIDTH = 97, 131
CHROMIUM = Path("/usr/bin/chromium")
VOID = {"img", "br"}


class Parts(HTMLParser):
    """Insists that every tag is closed in order; keeps tags and text."""

    def __init__(self, page: str) -> None:
        """Read a page."""
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open an element."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost element, which must be this one."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep text."""
        self.texts.append(data)

    def pictures(self) -> list[Image.Image]:
        """Decode every picture; none may lie elsewhere."""
        sources = [attrs["src"] or "" for tag, attrs in self.tags if tag == "img"]
        assert all(source.startswith("data:image/") for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]


def photo(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), orientation: int | None = None) -> str:
    image = Image.new("RGB", size, (250, 250, 250))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(path, exif=exif)
    return str(path)


def classification(source: str | None = None) -> Classification:
    return Classification(labels=("tench", HOSTILE), indices=(0, 1), scores=(0.75, 0.25), source=source)


def detections(source: str | None = None, masks: bool = False) -> Detections:
    mask = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.bool)
    mask[0, 40:60, 30:70] = True
    return Detections(
        boxes=torch.tensor([[10.0, 20, 100, 90], [50, 5, 125, 40], [0, 0, 9, 9]]),
        scores=torch.tensor([0.9, 0.6, 0.2]),
        indices=torch.tensor([0, 2, 1]),
        labels=("cat", HOSTILE, "bus"),
        size=(HEIGHT, WIDTH),
        masks=mask if masks else None,
        source=source,
    )


def segmentation(source: str | None = None) -> Segmentation:
    classes = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    classes[:, 100:] = 2
    classes[:10] = 255
    return Segmentation(classes=classes, names=("sky", "none of it", HOSTILE), source=source)


def embedding(source: str | None = None) -> Embedding:
    return Embedding(vector=torch.tensor([0.6, -0.8, 0.0]), source=source)


KINDS = (classification, detections, segmentation, embedding)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("there", [True, False])
def test_names_are_text_and_nothing_is_fetched(make, there: bool, tmp_path: Path) -> None:
    name = "<b onclick=x>&\"'\u202e.png"
    source = photo(tmp_path / name) if there else f"gone/{name}"
    page = make(source)._repr_html_()
    parts = Parts(page)
    assert {tag for tag, _ in parts.tags} <= {"div", "table", "tbody", "tr", "th", "td", "span", "img"}
    attributes = {attribute for _, attrs in parts.tags for attribute in attrs}
    assert attributes <= {"style", "src", "alt", "width"}
    assert "\u202e" not in page
    assert "http" not in page
    assert any("<b onclick=x>&\"'\\u202e.png" in text for text in parts.texts)
    if make is not embedding:
        assert any(text.startswith("<img src=x onerror=") for text in parts.texts)


def test_scores_are_the_lengths_of_bars() -> None:
    parts = Parts(classification()._repr_html_())
    widths = [
        float(re.search(r"width:([\d.]+)%", style)[1])
        for _, attrs in parts.tags
        if "%" in (style := attrs.get("style") or "")
    ]
    assert widths == [75.0, 25.0]
    assert "75.0%" in parts.texts
    many = Classification(labels=tuple("abcdefghijklmnop"), indices=tuple(range(16)), scores=(1 / 16,) * 16)
    assert "and 4 more" in Parts(many._repr_html_()).texts


def test_objects_are_drawn_where_they_are(tmp_path: Path) -> None:
    source = photo(tmp_path / "a.png")
    (image,) = Parts(detections(source, masks=True)._repr_html_()).pictures()
    seen = pixels(image)
    assert seen.shape[:2] == (HEIGHT, WIDTH)
    for (left, top, right, bottom), index in (((10, 20, 100, 90), 0), ((50, 5, 125, 40), 2)):
        colour = np.array(class_colour(index))
        for row, column in ((bottom, (left + right) // 2), ((top + bottom) // 2, right)):
            assert np.abs(seen[row, column] - colour).max() < 40, (row, column)
    assert np.abs(seen[50, 50] - (np.array(class_colour(0)) + 250) / 2).max() < 25, "the mask, half over the picture"
    assert np.abs(seen[80, 120] - 250).max() < 10, "outside all objects"
    assert np.abs(seen[:9, :9] - 250).max() < 10, "what scores under 0.5"
    texts = Parts(detections(source)._repr_html_()).texts
    assert [text for text in texts if text in ("1", "2", "3")] == ["1", "2"]
    assert "10, 20, 100, 90" in texts
    assert "0.900" in texts


def test_a_large_picture_is_drawn_small(tmp_path: Path) -> None:
    source = photo(tmp_path / "a.jpg", (3000, 2000))
    found = dataclasses.replace(
        detections(source), size=(2000, 3000), boxes=torch.tensor([[300.0, 200, 1500, 1000]] * 3)
    )
    page = found._repr_html_()
    (image,) = Parts(page).pictures()
    assert image.size == (480, 320)
    assert len(page) < 60_000
    assert np.abs(pixels(image)[160, 150] - class_colour(0)).max() < 60, "the lower edge at 1000 of 2000"


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_turned_pictures_are_upright_beneath(tmp_path: Path, orientation: int) -> None:
    turned = orientation > 4
    source = photo(tmp_path / "a.jpg", (HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT), orientation)
    (image,) = Parts(detections(source)._repr_html_()).pictures()
    assert image.size == (WIDTH, HEIGHT)
    assert pixels(image)[85, 120].min() > 230, "the picture, not the blank ground"


@pytest.mark.parametrize("what", ["gone", "damaged", "other size", "no picture"])
def test_without_its_picture_a_result_is_drawn_on_a_blank(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.png"
    if what == "other size":
        photo(path, (50, 60))
    elif what != "gone":
        photo(path)
        path.write_bytes(path.read_bytes()[:60] if what == "damaged" else b"%!PS-Adobe-3.0 EPSF-3.0\n")
    (image,) = Parts(detections(str(path))._repr_html_()).pictures()
    assert image.size == (WIDTH, HEIGHT)
    assert pixels(image)[80, 120].tolist() == [128, 134, 140]


def test_a_map_has_the_colours_of_its_legend(tmp_path: Path) -> None:
    (image,) = Parts(segmentation()._repr_html_()).pictures()
    seen = pixels(image)
    assert [tuple(seen[row, column]) for row, column in ((50, 50), (50, 120), (5, 50))] == [
        class_colour(0),
        class_colour(2),
        (128, 128, 128),
    ]
    page = segmentation()._repr_html_()
    assert "#{:02x}{:02x}{:02x}".format(*class_colour(2)) in page
    assert "none of it" not in page
    shares = [text for text in Parts(page).texts if text.endswith("%")]
    assert shares == [f"{100 * share:.1f}%" for share in segmentation().shares().values()]
    (over,) = Parts(segmentation(photo(tmp_path / "a.png"))._repr_html_()).pictures()
    assert np.abs(pixels(over)[50, 50] - (np.array(class_colour(0)) + 250) / 2).max() < 10


def test_a_vector_is_a_strip_of_its_numbers() -> None:
    (image,) = Parts(embedding()._repr_html_()).pictures()
    assert image.size == (3, 1)
    first, second, third = (image.getpixel((column, 0)) for column in range(3))
    assert first[0] > first[2], "orange above zero"
    assert second[2] > second[0], "blue below"
    assert (first[3], second[3], third[3]) == (191, 255, 0)
    assert "a vector of 3 numbers between -0.800 and 0.600" in embedding()._repr_html_()


def test_empty_and_odd_results_are_shown() -> None:
    none = detections().above(1.1)
    assert "no object" in none._repr_html_()
    for size in ((1, 5000), (5000, 1), (1, 1)):
        odd = dataclasses.replace(detections(), size=size)
        Parts(odd._repr_html_())
        Parts(Segmentation(classes=torch.zeros(size, dtype=torch.uint8), names=("a",))._repr_html_())
    nothing = Segmentation(classes=torch.full((4, 4), 255, dtype=torch.uint8), names=("a",))
    assert "no class" in nothing._repr_html_()
    for vector in ([0.0, 0.0], [float("nan"), float("inf"), 1.0]):
        Parts(Embedding(vector=torch.tensor(vector))._repr_html_())
    Parts(Classification(labels=("a",), indices=(0,), scores=(float("nan"),))._repr_html_())


@pytest.mark.parametrize("make", KINDS)
def test_text_stays_as_it_was(make) -> None:
    found = make()
    assert repr(found).startswith(type(found).__name__ + "(")
    assert str(found) == repr(found)
    assert "_repr_html_" not in {field.name for field in dataclasses.fields(found)}


@pytest.mark.skipif(not CHROMIUM.is_file(), reason="needs Chromium")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_a_browser_shows_them(tmp_path: Path, scheme: str, width: int) -> None:
    """Nothing runs, nothing is fetched, nothing hangs over a narrow page, and text has the page's colour."""
    source = photo(tmp_path / "a.png")
    body = "".join(make(source)._repr_html_() for make in KINDS)
    page = tmp_path / "page.html"
    page.write_text(f'<meta charset=utf-8><meta name=color-scheme content="light dark"><title>kept</title>{body}')
    asked: list[str] = []
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        assert tab.title() == "kept"
        assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        inks = tab.evaluate(
            "[...new Set([...document.querySelectorAll('td')].map(cell => getComputedStyle(cell).color))]"
        )
        assert inks == [tab.evaluate("getComputedStyle(document.body).color")]
        browser.close()
