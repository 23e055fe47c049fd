"""The documentation says what is there: links, commands, recipes, fields, models, Python; and the site is built."""

import ast
import importlib
import io
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
from markdown.extensions.toc import slugify

import davit
from davit.cli import VERBS, main
from davit.models.variants import VARIANTS
from davit.recipes import RECIPES, make_recipe
from davit.records import to_json
from davit.serving.metrics import Metrics
from davit.weights.catalog import WEIGHTS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
OTHERS = {"davit_base_fl", "davit_huge_fl"}  # models of timm that the docs name
METRICS = set(re.findall(r"# TYPE (\w+)", Metrics().text().decode()))
PLACES = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@cache
def anchors(page: Path) -> frozenset[str]:
    """What a link into a page may name: its headings, and the names that an API page documents."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", head) for head in heads]
    return frozenset([slugify(head, "-") for head in plain]) | frozenset(documented(page))


def documented(page: Path) -> list[str]:
    return re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for place in PLACES.findall(prose(page)):
        if re.match(r"[a-z]+:", place):
            continue
        path, _, anchor = place.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{place} is not there"
        assert not anchor or anchor in anchors(target), f"{place} has no such heading"
        if DOCS in page.parents:
            assert DOCS in target.parents, f"{place} is no page of the site"


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `davit` of every command in blocks and between backticks."""
    text = page.read_text(encoding="utf-8")
    lines = [line for _, block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
    for line in [*lines, *spans]:
        try:
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        except ValueError:  # an output with an apostrophe
            words = line.split()
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if "-m" in words[:-1] and words[words.index("-m") + 1] == "davit":
            words = words[words.index("-m") + 1 :]
        if len(words) > 1 and words[0] == "davit" and not words[1].endswith(":"):  # davit predict: is a message
            yield words[1:]


@cache
def options(*verb: str) -> frozenset[str]:
    """The options that a verb's help lists."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said), pytest.raises(SystemExit) as left:
        main([*verb, "--help"])
    assert left.value.code == 0
    return frozenset(re.findall(r"^. (?:-\w, )?(--[\w-]+)", said.getvalue(), re.MULTILINE))


@cache
def fields(recipe: str) -> frozenset[str]:
    """All fields of a recipe, and the groups of them."""

    def walk(values: dict[str, object], before: str) -> Iterator[str]:
        for name, value in values.items():
            yield before + name
            if isinstance(value, dict):
                yield from walk(value, f"{before}{name}.")

    return frozenset(walk(to_json(make_recipe(recipe)), ""))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_exist(page: Path) -> None:
    for words in commands(page):
        command = f"davit {' '.join(words)}"
        verb = words[:1]
        if verb[0].startswith("-"):
            continue
        assert verb[0] in VERBS, command
        rest = words[1:]
        if verb[0] in ("data", "benchmark") and rest:
            below = importlib.import_module(f"davit.cli.{verb[0]}").VERBS
            several = rest[0].split("|")
            assert set(several) <= set(below), command
            verb, rest = [*verb, several[0]], rest[1:]
        for word in rest:
            name = word.partition("=")[0]
            if name.startswith("--") and name != "--help":
                assert name in options(*verb), f"{command}: no option {name}"
        if verb == ["train"]:
            check_training(rest, command)


@pytest.mark.parametrize(
    "fault",
    [
        "davit predcit a.jpg",
        "davit predict --modle m.safetensors a.jpg",
        "davit data chekc flowers",
        "davit data check flowers --quik",
        "torchrun --nproc-per-node 8 -m davit train imagenet.davit_tyni data.root=imagenet",
        "davit train finetune data.rot=flowers",
        "OMP_NUM_THREADS=1 davit train finetune data.root=flowers \\\n  schedule.epoch=3",
    ],
)
@pytest.mark.parametrize("form", ["```\n{}\n```\n", "```sh\n$ {}  # why\n```\n", "Say `{}` twice.\n"])
def test_a_faulty_command_is_found(tmp_path: Path, fault: str, form: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(form.format(fault if "`{}`" not in form else fault.replace("\\\n", "")))
    with pytest.raises(AssertionError):
        test_commands_exist(page)


@pytest.mark.parametrize("fault", ["[a](gone.md)", "[a](#nothing)", "[a](page.md#nothing)"])
def test_a_faulty_link_is_found(tmp_path: Path, fault: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n[a](#title), [b](page.md#title), {fault}\n")
    with pytest.raises(AssertionError):
        test_links_lead_somewhere(page)


@pytest.mark.parametrize("fault", ["davit.lod('a')", "from davit.decoding import read_imag", "import davit.modles"])
def test_faulty_python_is_found(tmp_path: Path, fault: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```python\nimport davit\n\n{fault}\n```\n")
    with pytest.raises((AssertionError, ImportError)):
        test_python_names_what_is_there(page)


def check_training(words: list[str], command: str) -> None:
    """The recipe is there and has the fields."""
    recipe = next((word for word in words if re.fullmatch(r"[a-z][\w.]*", word)), "")
    if recipe:
        assert recipe in RECIPES, command
    known = fields(recipe) if recipe else all_fields()
    for name in (word.partition("=")[0] for word in words if re.match(r"[a-z]\w*\.[\w.]+=", word)):
        assert name in known, f"{command}: no field {name}"


@cache
def all_fields() -> frozenset[str]:
    """Fields of any recipe, for commands that name none or set the head of another."""
    return frozenset().union(*(fields(recipe) for recipe in RECIPES))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_models_and_weights_exist(page: Path) -> None:
    text = re.sub(r"[\w/-]*/\S*|\S+\.(md|py|safetensors|onnx|pth)\b", "", page.read_text(encoding="utf-8"))
    known = {*VARIANTS, *WEIGHTS, *OTHERS, *METRICS, *(f"davit_{recipe.partition('davit_')[2]}" for recipe in RECIPES)}
    for name in re.findall(r"(?<![\w.])davit_[a-z]+(?:_[a-z0-9]+)*(?:\.[a-z]\w+)?", text):
        assert name in known, name


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_names_what_is_there(page: Path) -> None:
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language != "python":
            continue
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "davit":
                home = importlib.import_module(node.module or "")
                assert [name.name for name in node.names if not hasattr(home, name.name)] == [], node.module
            elif isinstance(node, ast.Import):
                for name in node.names:
                    importlib.import_module(name.name)
            elif isinstance(node, ast.Attribute) and dotted(node).startswith("davit."):
                assert found(dotted(node)), dotted(node)


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def found(name: str) -> bool:
    """Whether a name with dots can be reached from its package."""
    value: object = importlib.import_module(name.partition(".")[0])
    path = name.partition(".")[0]
    for part in name.split(".")[1:]:
        path = f"{path}.{part}"
        if not hasattr(value, part) and isinstance(value, ModuleType):
            try:
                value = importlib.import_module(path)
                continue
            except ImportError:
                return False
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def test_the_api_pages_document_what_is_public() -> None:
    named = {name for page in (DOCS / "api").glob("*.md") for name in documented(page)}
    assert [name for name in named if not found(name)] == []
    assert {f"davit.{name}" for name in davit.__all__ if not name.startswith("_")} <= named


def test_model_cards_are_those_of_the_code() -> None:
    sys.path.insert(0, str(DOCS))
    try:
        cards = importlib.import_module("make_model_cards").cards()
    finally:
        sys.path.remove(str(DOCS))
    assert {path.name for path in (DOCS / "models").iterdir()} == set(cards)
    for name, text in cards.items():
        assert (DOCS / "models" / name).read_text(encoding="utf-8") == text, f"{name}: run docs/make_model_cards.py"
    assert set(cards) == {"index.md", *(f"{name}.md" for name in VARIANTS)}
    for entry in WEIGHTS.values():
        card = cards[f"{entry.variant}.md"]
        assert {entry.name, entry.licence, entry.url} <= set(re.findall(r"[^\s`|()]+", card))


def navigation(entries: list[object]) -> Iterator[str]:
    """The pages that the navigation names."""
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            for value in entry.values():
                yield from navigation(value if isinstance(value, list) else [value])


def test_the_navigation_names_every_page_once() -> None:
    pages = list(navigation(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]))
    assert sorted(pages) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


class Resources(HTMLParser):
    """Keeps what a browser would fetch for a page, and the places in it."""

    def __init__(self, page: Path) -> None:
        """Read a page."""
        super().__init__()
        self.fetched: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element fetches."""
        values = dict(attrs)
        self.places.add(values.get("id") or "")
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(values.get("href") or "")
        elif values.get("src"):
            self.fetched.append(values["src"] or "")


def test_the_site_is_built_and_fetches_nothing_from_elsewhere(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    (tmp_path / "src").symlink_to(ROOT / "src")
    command = [Path(sys.executable).parent / "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "build" / "site"
    pages = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")} - {Path("404")}
    assert pages == {page.relative_to(DOCS).with_suffix("") for page in DOCS.rglob("*.md")}
    assert not list(site.rglob("*.py"))
    for path in site.rglob("*.html"):
        resources = Resources(path)
        assert [place for place in resources.fetched if re.match(r"(https?:)?//", place)] == [], path
        for place in resources.fetched:
            assert path.name == "404.html" or place.startswith("data:") or (path.parent / place).is_file(), place
    for page in (DOCS / "api").glob("*.md"):
        assert set(documented(page)) <= Resources(site / "api" / f"{page.stem}.html").places
    assert "class=mermaid" not in (site / "architecture.html").read_text().replace('"', ""), "it would load a program"
    assert "davit_tiny" in (site / "search.json").read_text()
