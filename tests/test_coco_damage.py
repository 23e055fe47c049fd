"""COCO files that are damaged: refused, with what is wrong and where; nothing is guessed around."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coco_files import Truth, draw, small, write
from davit.data.coco import CocoImages
from davit.data.coco_json import SECTIONS, entries
from davit.decoding import ImageError

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools


def change(section: str, **values: Any) -> Callable[[Truth], None]:
    return lambda truth: truth[section][1].update(values)


def without(section: str, key: str) -> Callable[[Truth], None]:
    return lambda truth: truth[section][1].pop(key)


RLE = {"size": [20, 30], "counts": [100, 500]}
DAMAGE: dict[str, Callable[[Truth], Any]] = {
    "has no list annotations": lambda truth: truth.pop("annotations"),
    "has no list images and no list categories": lambda truth: [truth.pop(key) for key in ("images", "categories")],
    "an entry of images is 7, not an object": lambda truth: truth["images"].append(7),
    "image 2 has no 'height'": without("images", "height"),
    "image 2 has no 'file_name'": without("images", "file_name"),
    "annotation 12 has no 'bbox'": without("annotations", "bbox"),
    "annotation 12 has no 'category_id'": without("annotations", "category_id"),
    "annotation {\"image_id\": 2.* has no 'id'": without("annotations", "id"),
    "category 3 has no 'name'": without("categories", "name"),
    "image id 1 is there 2 times": change("images", id=1),
    "annotation id 11 is there 2 times": change("annotations", id=11),
    "category id 90 is there 2 times": change("categories", id=90),
    "annotation 12 belongs to image 5, which": change("annotations", image_id=5),
    "annotation 12 belongs to category 5, which": change("annotations", category_id=5),
    "categories 3 and 90 are both called 'car'": lambda truth: truth["categories"][0].update(name="car"),
    "image 2 is damaged: file_name '../x.png' leads": change("images", file_name="../x.png"),
    "image 2 is damaged: file_name '/etc/x' leads": change("images", file_name="/etc/x"),
    r"image 2 is damaged: file_name 'C:.*x' leads": change("images", file_name="C:\\x"),
    "image 2 is damaged: file_name '' leads": change("images", file_name=""),
    "image 2 is damaged: its height and width are 0": change("images", height=0),
    "image 2 is damaged.*float": change("images", width=30.5),
    "image '2' is damaged": change("images", id="2"),
    "annotation 12 is damaged: its bbox must be": change("annotations", bbox=[1, 2, 3]),
    "annotation 12 is damaged.*number": change("annotations", bbox=[1, 2, 3, "4"]),
    "annotation 12 is damaged.*integer": change("annotations", image_id="2"),
    "annotation 12 is damaged.*RLE": change("annotations", segmentation=RLE | {"counts": "!!"}),
    "annotation 12 is damaged: .*exceed": change("annotations", segmentation=RLE | {"counts": [100, 501]}),
    "annotation 12 is damaged: .*number": change("annotations", segmentation=[["a"] * 6]),
    r"the mask of annotation 12 is \(30, 20\) high and wide, its image \(20, 30\)": change(
        "annotations", segmentation={"size": [30, 20], "counts": [100, 500]}
    ),
    "annotation 12 has coordinates that are no finite": change("annotations", bbox=[1, 2, 3, float("nan")]),
    "annotation 12 has coordinates that are no": change("annotations", segmentation=[[1, 2, float("inf"), 4, 5, 6]]),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_files_are_refused_with_their_name_and_the_id(tmp_path: Path, message: str) -> None:
    truth = small()
    DAMAGE[message](truth)
    path = write(tmp_path, truth)
    with pytest.raises(ValueError, match=message) as caught:
        CocoImages(path, tmp_path, masks=True)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"no", b"[]", b"{} {}", b"\xff", b'{"images": {}}', b'{"images": [{},]}', b"[" * 99_999]
)
def test_what_is_no_json_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.json is no COCO file"):
        list(entries(tmp_path / "x.json"))


SIMPLE = st.none() | st.integers() | st.text(max_size=5)
VALUES = SIMPLE | st.lists(SIMPLE, max_size=3) | st.dictionaries(st.text(max_size=3), SIMPLE, max_size=3)


@given(
    sections=st.permutations([*SECTIONS, "info", "licenses"]),
    lists=st.lists(
        st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), max_size=3), min_size=3, max_size=3
    ),
    other=VALUES,
    indent=st.sampled_from([None, 0, "\t", " \r\n"]),
    cut=st.floats(0, 0.999),
)
@settings(max_examples=60, deadline=None)
def test_entries_are_read_as_json_reads_them_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, sections: list[str], lists: list[Any], other: Any, indent: Any, cut: float
) -> None:
    truth = {name: other for name in sections} | dict(zip(SECTIONS, lists, strict=True))
    path = tmp_path_factory.getbasetemp() / "any.json"
    text = json.dumps({name: truth[name] for name in sections}, indent=indent, ensure_ascii=cut < 0.5)
    path.write_text(text, encoding="utf-8")
    expected = [(name, entry) for name in sections if name in SECTIONS for entry in truth[name]]
    assert list(entries(path)) == expected
    path.write_text(text[: int(len(text) * cut)], encoding="utf-8")
    with pytest.raises(ValueError, match="is no COCO file"):
        list(entries(path))


def test_pictures_that_do_not_fit_are_named(tmp_path: Path) -> None:
    truth = small()
    draw(tmp_path, truth)
    truth["images"][0]["height"] = 25
    truth["images"][1] |= {"height": 30, "width": 20}
    truth["annotations"] += [truth["annotations"][0] | {"id": 13}]
    path = write(tmp_path, truth)
    images = CocoImages(path, tmp_path, masks=False)
    with pytest.raises(ImageError, match=r"1\.png: has 30x20 pixels, .*instances\.json says 30x25$"):
        images[0]
    with pytest.raises(ImageError, match=r"2\.png: has 30x20 pixels, .* says 20x30; its EXIF may turn it"):
        images[1]
    (tmp_path / "1.png").write_bytes(b"text")
    with pytest.raises(ImageError, match=r"1\.png: is no picture"):
        images[0]


def test_a_mask_of_too_few_pixels_is_named_with_its_file(tmp_path: Path) -> None:
    truth = small()
    draw(tmp_path, truth)
    truth["annotations"][0]["segmentation"] = {"size": [20, 30], "counts": [100, 50]}
    images = CocoImages(write(tmp_path, truth), tmp_path, masks=True)
    with pytest.raises(ImageError, match=r"instances\.json: a mask of annotations 11 is damaged"):
        images[0]
    assert len(images[1][1].boxes) == 1
