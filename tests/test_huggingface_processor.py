"""The image processor of transformers gives davit's pixels, and the pipeline the predictor's answers."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessor, pipeline

import davit.huggingface as hf
from davit import Predictor
from davit.decoding import as_shown, read_image
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.preprocessing import Preprocessing
from odd_pictures import ERROR, FAMILIES, encode, exif, scene

SIZES = [(97, 131), (30, 200), (64, 64), (7, 5)]
PREPROCESSINGS = [
    Preprocessing.imagenet(64),
    Preprocessing(size=(48, 80), crop=0.875, interpolation="bilinear"),
    Preprocessing(size=(64, 64), fit="squash", crop=1.0, interpolation="lanczos", mean=(0.5,), std=(0.25,)),
    Preprocessing(size=(40, 90), fit="within", interpolation="nearest"),
]


def pixels(height: int, width: int, channels: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS)
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_davits_to_the_bit(preprocessing: Preprocessing, size: tuple[int, int]) -> None:
    processor = hf.DaViTImageProcessor.from_davit(preprocessing)
    assert processor.preprocessing == preprocessing
    colour = pixels(*size)
    picture = Image.fromarray(colour)
    wanted = preprocessing(picture)
    channels_first = torch.from_numpy(colour).permute(2, 0, 1)
    for image in (picture, colour, channels_first, colour.astype(np.float32), channels_first.double()):
        found = processor(image, return_tensors="pt")["pixel_values"]
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted[None])
    shares = colour.astype(np.float32) / 255
    assert torch.equal(processor(shares, do_rescale=False, return_tensors="pt").pixel_values, wanted[None])
    for mode in ("L", "P", "CMYK", "1"):
        other = picture.convert(mode)
        assert torch.equal(processor(other, return_tensors="pt").pixel_values[0], preprocessing(as_shown(other)))


def test_batches_and_kinds_of_results(tmp_path: Path) -> None:
    processor = hf.DaViTImageProcessor(size=64)
    pictures = [Image.fromarray(pixels(*size)) for size in SIZES]
    wanted = torch.stack([processor.preprocessing(picture) for picture in pictures])
    assert torch.equal(processor(pictures, return_tensors="pt").pixel_values, wanted)
    as_array = processor(pictures, return_tensors="np")["pixel_values"]
    assert isinstance(as_array, np.ndarray)
    assert np.array_equal(as_array, wanted.numpy())
    as_list = processor([[pictures[0]], pictures[1:]])["pixel_values"]
    assert all(torch.equal(one, other) for one, other in zip(as_list, wanted, strict=True))
    batch = torch.from_numpy(np.stack([pixels(60, 90)] * 3)).permute(0, 3, 1, 2)
    assert processor(batch, return_tensors="pt").pixel_values.shape == (3, 3, 64, 64)
    rng = random.Random(0)
    paths = [tmp_path / "turned.jpg", tmp_path / "clear.png"]
    paths[0].write_bytes(encode(scene(rng), "JPEG", exif=exif(6)))
    paths[1].write_bytes(encode(pixels(50, 40, 4), "PNG"))
    found = processor([str(path) for path in paths], return_tensors="pt").pixel_values
    assert torch.equal(found, torch.stack([processor.preprocessing(read_image(path)) for path in paths]))
    assert processor(images=pictures[0], return_tensors="pt", device="meta").pixel_values.is_meta


def test_grey_and_transparent_arrays() -> None:
    processor = hf.DaViTImageProcessor(size=64)
    grey, clear = pixels(50, 70, 1), pixels(50, 70, 4)
    wanted = processor.preprocessing(Image.fromarray(grey[..., 0]))
    for array in (grey, grey[..., 0], grey.transpose(2, 0, 1)):
        assert torch.equal(processor(array, return_tensors="pt").pixel_values[0], wanted)
    wanted = processor.preprocessing(as_shown(Image.fromarray(clear)))
    assert torch.equal(processor(clear, return_tensors="pt").pixel_values[0], wanted)
    three = pixels(3, 3)
    first, last = (
        processor(three, input_data_format=layout, return_tensors="pt").pixel_values[0]
        for layout in ("channels_first", "channels_last")
    )
    assert torch.equal(last, processor.preprocessing(Image.fromarray(three)))
    assert torch.equal(first, processor.preprocessing(Image.fromarray(three.transpose(1, 2, 0))))


def test_steps_can_be_left_out_and_settings_changed(tmp_path: Path) -> None:
    processor = hf.DaViTImageProcessor(size=(64, 64))
    assert (processor.size.height, processor.size["width"]) == (64, 64)
    picture = Image.fromarray(pixels(97, 131))
    whole = processor(picture, do_resize=False, return_tensors="pt").pixel_values[0]
    assert torch.equal(whole, processor.preprocessing.tensor(picture))
    plain = processor(picture, do_resize=False, do_normalize=False, return_tensors="pt").pixel_values[0]
    assert torch.equal((plain * 255).round().byte(), torch.tensor(np.asarray(picture)).permute(2, 0, 1))
    larger = processor(picture, size={"height": 80, "width": 48}, crop=1.0, return_tensors="pt").pixel_values[0]
    assert torch.equal(larger, Preprocessing(size=(80, 48), crop=1.0)(picture))
    assert processor.preprocessing.size == (64, 64)
    processor.do_normalize = False
    processor.save_pretrained(tmp_path)
    loaded = hf.DaViTImageProcessor.from_pretrained(tmp_path, size=72)
    assert (loaded.do_normalize, loaded.do_resize, loaded.preprocessing.size) == (False, True, (72, 72))
    assert {path.name for path in tmp_path.iterdir()} == {"preprocessor_config.json", "davit_classes.py"}


def test_wrong_input_is_told(tmp_path: Path) -> None:
    processor = hf.DaViTImageProcessor(size=64)
    grey = np.zeros((40, 50), np.float32)
    for image, told in (
        (np.zeros((40, 50, 2), np.uint8), "channel"),
        (grey + 0.5, "pass do_rescale=False"),
        (grey - 1, "lie in 0 to 255, got -1"),
        (grey + np.nan, "lie in 0 to 255, got nan"),
        (grey.astype(np.int32) + 70_000, "lie in 0 to 255, got 70000"),
        (grey.astype(bool), "got bool"),
        (np.zeros((0, 5), np.uint8), "1, 3 or 4 channels"),
        (str(tmp_path / "none.png"), "none.png"),
    ):
        with pytest.raises(ValueError, match=told):
            processor(image, return_tensors="pt")
    for settings, told in (
        ({"sise": 3}, "unknown setting of DaViTImageProcessor 'sise'. Did you mean 'size'"),
        ({"size": {"shortest_edge": 224}}, "size must be a number"),
        ({"resample": 9}, "resample must be one of 0"),
        ({"do_rescale": False}, "8-bit pictures are always rescaled"),
        ({"crop": 1.5}, r"crop must lie in \(0, 1\]"),
        ({"return_tensor": "pt"}, "unknown setting"),
    ):
        with pytest.raises(ValueError, match=told):
            processor(pixels(30, 40), **settings)
    with pytest.raises(ValueError, match=r"sizes \[\(30, 40\), \(50, 40\)\] cannot be one tensor"):
        processor([pixels(30, 40), pixels(50, 40)], do_resize=False, return_tensors="pt")
    assert len(processor([pixels(30, 40), pixels(50, 40)], do_resize=False).pixel_values) == 2
    ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="settings of a ViTImageProcessor"):
        hf.DaViTImageProcessor.from_pretrained(tmp_path)


@pytest.fixture(scope="module", params=[3, 1])
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    torch.manual_seed(0)
    config = DaViTConfig(widths=(32, 64, 96, 128), depths=(1, 1, 1, 1), in_channels=request.param)
    model = Classifier(ClassifierConfig(backbone=config, num_classes=12))
    with torch.no_grad():  # answers that differ
        model.head.weight.mul_(30)
        model.head.bias.sub_(model(torch.randn(8, request.param, 64, 64) * torch.rand(8, 1, 1, 1)).mean(0))
    model.classes = tuple(f"class {letter}" for letter in "abcdefghijkl")
    model.preprocessing = dataclasses.replace(Preprocessing.imagenet(64, request.param), crop=0.8)
    theirs, processor = hf.from_davit(model)
    assert processor is not None
    out = tmp_path_factory.mktemp("folder")
    theirs.save_pretrained(out)
    processor.save_pretrained(out)
    return out


def test_pipeline_answers_as_the_predictor(folder: Path, tmp_path: Path) -> None:
    hf.register()
    classify, predictor = pipeline("image-classification", str(folder)), Predictor.load(folder)
    assert isinstance(AutoImageProcessor.from_pretrained(folder), hf.DaViTImageProcessor)
    answers = set()
    for name, make in FAMILIES.items():
        data, expected, _ = make(random.Random(3))
        if expected is ERROR:
            continue
        wanted = predictor(data)[0]
        (found,) = classify([read_image(data)])
        assert [answer["label"] for answer in found] == list(wanted.labels), name
        assert [answer["score"] for answer in found] == pytest.approx(list(wanted.scores), abs=1e-6), name
        answers.add(found[0]["label"])
    assert len(answers) > 2
    path = tmp_path / "turned.jpg"
    path.write_bytes(encode(scene(random.Random(5)), "JPEG", exif=exif(6)))
    assert classify(str(path), top_k=1)[0]["label"] == predictor(path)[0].labels[0]
