"""Odd and broken pictures: right pixels, or one error that names the file."""

import io
import os
import random
import resource
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from davit.decoding import ImageError, as_shown, read_image
from odd_pictures import ERROR, FAMILIES, ODD_NAMES, encode, exif, png, scene

ODD_FORMATS = Path(__file__).parents[2] / "shared" / "data" / "odd_formats"
BROKEN_ODD_FORMATS = {
    "libvips_truncated.gif",
    "libvips_truncated.jpg",
    "mmcv_uint16-5channel.tif",
    "pillow_broken.png",
    "pillow_broken_data_stream.png",
    "pillow_decompression_bomb.gif",
    "pillow_png_decompression_dos.png",
    "pillow_truncated_end_chunk.png",
    "pillow_truncated_image.png",
    "pillow_truncated_jpeg.jpg",
}


def difference(picture: Image.Image, expected: np.ndarray) -> float:
    pixels = np.asarray(picture if expected.ndim == 2 else picture.convert("RGB")).astype(float)
    assert pixels.shape == expected.shape
    return float(np.abs(pixels - np.rint(expected)).mean())


def read_or_error(path: Path) -> Image.Image | ImageError:
    try:
        return read_image(path)
    except ImageError as error:
        return error


@pytest.fixture
def silent(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield
    assert [str(w.message) for w in heard if issubclass(w.category, UserWarning | RuntimeWarning)] == []
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("family", FAMILIES)
def test_63_pictures_of_each_family_decode_right_or_give_one_error(family: str, tmp_path: Path) -> None:
    rng = random.Random(family)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(63):
        data, expected, allowed = FAMILIES[family](rng)
        name = rng.choice(ODD_NAMES) if family == "odd_name" else f"{number}.{rng.choice(['jpg', 'png', 'tif'])}"
        path = tmp_path / name
        path.write_bytes(data)
        start = time.process_time()
        result = read_or_error(path)
        assert time.process_time() - start < 1.0, (family, number)
        if isinstance(result, ImageError):
            assert expected is ERROR or family == "flipped_bits", (family, number, result)
            assert str(result).isprintable()
            assert str(path) in str(result) or ascii(str(path)) in str(result)
        else:
            assert expected is not ERROR, (family, number)
            assert result.mode in ("L", "RGB")
            if isinstance(expected, np.ndarray):
                assert difference(result, expected) <= allowed, (family, number)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 512 * 1024


def test_files_that_are_none_give_an_image_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty.jpg").touch()
    for source, reason in [
        (tmp_path / "missing.jpg", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is not a regular file"),
        (tmp_path / "empty.jpg", "is empty"),
        ("nul\0.jpg", "damaged"),
        (b"", "no bytes"),
    ]:
        with pytest.raises(ImageError, match=reason):
            read_image(source)


def test_the_limit_of_pixels_is_checked_from_the_header_and_can_be_set() -> None:
    body = b"".join(b"\0" + bytes(30) for _ in range(10))
    assert read_image(png(10, 10, body), max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError, match=r"photo: has 10x10 pixels, over the limit of 99"):
        read_image(png(10, 10, body), max_pixels=99, name="photo")


def test_a_picture_is_not_turned_twice() -> None:
    pixels = scene(random.Random(0), 30, 20)
    once = read_image(encode(pixels, "PNG", exif=exif(6)))
    assert once.size == (20, 30)
    assert np.array_equal(as_shown(once), once)


def test_a_picture_opened_by_the_user_looks_the_same() -> None:
    pixels = np.dstack([scene(random.Random(0), 30, 20), np.full((20, 30), 100, np.uint8)])
    data = encode(pixels, "PNG", exif=exif(8))
    assert np.array_equal(as_shown(Image.open(io.BytesIO(data))), read_image(data))


def test_rows_missing_from_a_tiff_are_not_black() -> None:
    good = encode(np.full((40, 40), 9, np.uint16), "TIFF")
    tall = good.replace(struct.pack("<HHII", 257, 4, 1, 40), struct.pack("<HHII", 257, 4, 1, 4000))
    assert tall != good
    with pytest.raises(ImageError, match="rows are missing"):
        read_image(tall)


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    data = encode(scene(random.Random(0)), "PNG")
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [read_image(data) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


@pytest.mark.usefixtures("silent")
@pytest.mark.skipif(not ODD_FORMATS.is_dir(), reason="the measuring data is not here")
def test_odd_formats_of_other_projects() -> None:
    results = {path: read_or_error(path) for path in sorted(ODD_FORMATS.iterdir())}
    errors = {path: result for path, result in results.items() if isinstance(result, ImageError)}
    assert {path.name for path in errors} == BROKEN_ODD_FORMATS
    assert all(str(path) in str(error) for path, error in errors.items())
    turned = [read_image(ODD_FORMATS / f"exif_orientation_{n}.jpg") for n in range(1, 9)]
    first = np.asarray(turned[0]).astype(float)
    assert all(np.abs(np.asarray(picture) - first).mean() < 8 for picture in turned)  # each wears its own number
