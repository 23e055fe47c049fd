"""`davit serve` answers what `Predictor` answers, in the form that it promises."""

import asyncio
import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

import davit
import small_detectors
import spoken_models
from colour_texts import COLOURS, fresh
from davit.cli.serve import _explainer
from davit.colours import class_colour
from davit.decoding import ImageError
from davit.inference.predictor import Predictor
from davit.inference.zero_shot import Labels, embed_texts
from davit.models.config import DaViTConfig
from davit.models.davit import DaViT
from davit.models.zero_shot import Embedder
from davit.preprocessing import Preprocessing
from davit.weights.save import save
from odd_pictures import FAMILIES, encode, exif, scene
from small_servers import ColourBackend, client_of, colour_model, opened, running, small_classifier

SERVED = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")


def pictures(count: int = 5) -> list[bytes]:
    """Pictures of several sizes, one turned by its EXIF, one of 16 bits."""
    rng = random.Random(5)
    some = [encode(scene(rng, 97, 131), "PNG"), encode(scene(rng, 200, 60), "JPEG", exif=exif(6))]
    some.append(encode(np.arange(97 * 31, dtype=np.uint16).reshape(97, 31) * 20, "PNG"))
    return (some + [encode(scene(rng), "WEBP") for _ in range(count)])[:count]


def parts(files: list[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (f"{place}.bin", data)) for place, data in enumerate(files)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A fresh small model of every kind."""
    folder = tmp_path_factory.mktemp("serve")
    made = {
        "classifier": small_classifier(
            folder / "c.safetensors", DaViTConfig(widths=(32, 64, 96, 128), depths=(1, 1, 2, 1))
        )
    }
    others = {
        "mask_rcnn": spoken_models.model_of("mask_rcnn"),
        "retinanet": spoken_models.model_of("retinanet"),
        "segmenter": spoken_models.model_of("segmenter"),
        "image_text": fresh(),
    }
    backbone = DaViT(small_detectors.TINY).eval()
    backbone.preprocessing = Preprocessing.imagenet(64)
    for name, model in (others | {"backbone": backbone}).items():
        made[name] = folder / f"{name}.safetensors"
        save(model, made[name])
    return made


def ask(models: dict[str, Path], path: str, files: list[bytes], together: bool, **fields: Any) -> list[dict[str, Any]]:
    """Entries of a single model, asked in one request or in many at once."""

    async def work() -> list[dict[str, Any]]:
        loaded = {name: opened(file, **fields) for name, file in models.items()}
        async with running(loaded) as service, client_of(service) as client:
            if together:
                answers = [await client.post(path, files=parts(files))]
            else:
                posts = [client.post(path, content=data, headers={"content-type": "image/png"}) for data in files]
                answers = await asyncio.gather(*posts)
            assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
            assert {answer.json()["model"] for answer in answers} == set(models)
            return [entry for answer in answers for entry in answer.json()["results"]]

    return asyncio.run(work())


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("kind", ["classifier", "mask_rcnn", "retinanet", "segmenter"])
def test_every_kind_answers_as_the_predictor_does(models: dict[str, Path], kind: str, together: bool) -> None:
    files = pictures()
    wanted = Predictor.load(models[kind])(files, top=3)
    entries = ask({kind: models[kind]}, "/v1/predict?top=3&threshold=0.25", files, together)
    for place, (entry, result) in enumerate(zip(entries, wanted, strict=True)):
        if isinstance(result, davit.structures.Detections):
            result = result.above(0.25)
            assert len(result.scores)
        told = result.to_json()
        upright = davit.decoding.read_image(files[place])
        assert entry.pop("file") == (f"{place}.bin" if together else None)
        assert (entry.pop("width"), entry.pop("height")) == upright.size
        assert entry.pop("kind") == {"classifier": "classification", "segmenter": "segmentation"}.get(kind, "detection")
        for name in ("file", "width", "height"):
            told.pop(name, None)
        if "objects" in told:
            indices = {each["label"]: each["index"] for each in told["objects"]}
            told["colours"] = {label: "#" + bytes(class_colour(index)).hex() for label, index in indices.items()}
        assert_alike(entry, told)


def assert_alike(a: Any, b: Any) -> None:
    """JSON values with numbers that agree to what batches change, and everything else exactly."""
    if isinstance(b, dict):
        assert a.keys() == b.keys()
        for key in b:
            assert_alike(a[key], b[key])
    elif isinstance(b, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_alike(one, other)
    elif isinstance(b, float):
        assert a == pytest.approx(b, abs=2e-2 if abs(b) > 1 else 2e-5)
    else:
        assert a == b


def test_batched_logits_are_those_of_single_pictures(models: dict[str, Path]) -> None:
    """The figure of reliability: 1e-5, whatever the batch mates; and they were computed together."""
    loaded = opened(models["classifier"])
    backend, sizes = loaded.backend, []
    computed: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched(ColourBackend):
        preprocessing = backend.preprocessing  # type: ignore[assignment]

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            outputs = backend(images)
            computed.extend(zip(images, outputs, strict=True))
            return outputs

    rng = random.Random(1)
    files = [encode(scene(rng, 64, 64), "PNG") for _ in range(40)]

    async def work() -> None:
        async with (
            running({"m": colour_model(Watched(classes=backend.classes))}) as service,
            client_of(service) as client,
        ):
            answers = await asyncio.gather(*(client.post("/v1/predict", files=parts([data])) for data in files))
            assert {answer.status_code for answer in answers} == {200}

    asyncio.run(work())
    assert sum(sizes) == 40
    assert max(sizes) > 1
    for data in files:
        pixels = backend.preprocessing(davit.decoding.read_image(data))
        found = [row for image, row in computed if torch.equal(image, pixels)]
        assert found
        for logits in found:
            torch.testing.assert_close(logits, backend(pixels[None])[0], atol=1e-5, rtol=0)


def test_a_map_is_a_picture_of_class_indices_in_the_colours_told(models: dict[str, Path]) -> None:
    files = pictures(3)
    entries = ask({"segmenter": models["segmenter"]}, "/v1/predict?map=1", files, together=True)
    for entry, result in zip(entries, Predictor.load(models["segmenter"])(files), strict=True):
        head, _, data = entry["map"].partition(",")
        assert head == "data:image/png;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert np.array_equal(np.asarray(picture), result.classes.numpy())  # type: ignore[union-attr]
        assert entry["colours"].keys() == entry["classes"].keys()
        for name, colour in entry["colours"].items():
            assert colour == "#" + bytes(class_colour(int(name))).hex()
            assert picture.convert("RGB").getpixel(
                tuple(np.argwhere(np.asarray(picture) == int(name))[0][::-1].tolist())
            ) == class_colour(int(name))
    assert "map" not in ask({"segmenter": models["segmenter"]}, "/v1/predict", files, together=True)[0]


@pytest.mark.parametrize("kind", ["classifier", "mask_rcnn", "segmenter", "image_text", "backbone"])
def test_vectors_are_those_of_the_embedder(models: dict[str, Path], kind: str) -> None:
    files = pictures()
    entries = ask({kind: models[kind]}, "/v1/embed", files, together=True)
    embedder = Embedder(davit.load(models[kind])).eval()
    for place, (data, entry) in enumerate(zip(files, entries, strict=True)):
        assert entry["file"] == f"{place}.bin"
        assert embedder.preprocessing is not None
        with torch.no_grad():
            vector = embedder(embedder.preprocessing(davit.decoding.read_image(data))[None])[0]
        np.testing.assert_allclose(entry["embedding"], vector / vector.norm(), atol=1e-5)


def test_image_text_models_know_texts_and_with_labels_classes(models: dict[str, Path]) -> None:
    texts = ["a red picture", "ein grünes Bild"]

    async def work(labels: Labels | None) -> tuple[httpx.Response, ...]:
        loaded = opened(models["image_text"], labels=labels)
        async with running({"m": loaded, "other": colour_model()}) as service, client_of(service) as client:
            return (
                await client.post("/v1/embed", json={"texts": texts}),
                await client.post("/v1/predict", files=parts(pictures(1))),
                await client.get("/v1/models"),
            )

    labels = Labels(names=COLOURS)
    vectors, answer, about = asyncio.run(work(labels))
    wanted = embed_texts(davit.load(models["image_text"]), texts)  # type: ignore[arg-type]
    assert [entry["text"] for entry in vectors.json()["results"]] == texts
    np.testing.assert_allclose([entry["embedding"] for entry in vectors.json()["results"]], wanted, atol=1e-5)
    told = Predictor.load(models["image_text"], labels=labels)(pictures(1))[0].to_json()
    assert_alike(answer.json()["results"][0]["top"], told["top"])
    assert about.json()["models"][0]["classes"] == 3
    _, answer, about = asyncio.run(work(None))
    assert answer.json()["results"][0]["kind"] == about.json()["models"][0]["kind"] == "embedding"


def test_models_are_listed_with_the_default(models: dict[str, Path]) -> None:
    async def work() -> dict[str, Any]:
        loaded = {"a": colour_model(), "c": opened(models["classifier"]), "d": opened(models["mask_rcnn"])}
        async with running(loaded, explain=lambda *_: {}) as service, client_of(service) as client:
            return (await client.get("/v1/models")).json()

    listed = asyncio.run(work())
    assert listed["default"] == "a"
    shape = {"name": "c", "kind": "classification", "classes": 5, "size": [64, 64], "backend": "eager"}
    assert listed["models"][1] == shape | {"explain": True, "file": "c.safetensors"}
    shape = {"name": "d", "kind": "detection", "classes": 10, "size": [96, 128], "backend": "eager"}
    assert listed["models"][2] == shape | {"explain": True, "file": "d.safetensors"}
    assert not listed["models"][0]["explain"]


def test_explanations_are_what_the_callable_makes(models: dict[str, Path]) -> None:
    def explain(model: Any, picture: Image.Image, index: int | None) -> dict[str, Any]:
        if index == 4:
            raise ValueError("of class 4 nothing is known")
        if index == 3:
            raise RuntimeError("a secret")
        return {"classes": model.classes, "size": picture.size, "class": index}

    async def work() -> list[httpx.Response]:
        loaded = {"c": opened(models["classifier"])}
        async with running(loaded, explain=explain) as service, client_of(service) as client:
            return [
                await client.post(f"/v1/explain{query}", files=parts(pictures(1)))
                for query in ("", "?class=2", "?class=4", "?class=3")
            ]

    first, second, third, fourth = asyncio.run(work())
    assert first.json() == {"model": "c", "file": "0.bin", "classes": list("abcde"), "size": [97, 131], "class": None}
    assert second.json()["class"] == 2
    assert third.status_code == 422
    assert "of class 4 nothing is known" in third.json()["error"]["message"]
    assert (fourth.status_code, fourth.json()["error"]["type"]) == (500, "model_failed")
    assert "secret" not in fourth.text


def test_explanations_and_answers_do_not_disturb_each_other(models: dict[str, Path]) -> None:
    """Both go through one model, in two threads."""
    files = pictures()
    alone = Predictor.load(models["classifier"])(files)

    async def work() -> tuple[list[httpx.Response], list[httpx.Response]]:
        loaded = {"c": opened(models["classifier"])}
        async with running(loaded, explain=_explainer()) as service, client_of(service) as client:
            explained = [client.post("/v1/explain", files=parts(files[:1])) for _ in range(4)]
            answered = [client.post("/v1/predict", files=parts(files)) for _ in range(30)]
            return await asyncio.gather(*explained), await asyncio.gather(*answered)

    explained, answered = asyncio.run(work())
    assert {answer.status_code for answer in explained + answered} == {200}
    assert len({answer.text for answer in explained}) == 1
    assert explained[0].json()["windows"]
    assert explained[0].json()["cam"]["class"] == alone[0].indices[0]  # type: ignore[union-attr]
    for answer in answered:
        for entry, result in zip(answer.json()["results"], alone, strict=True):
            assert_alike(entry["top"], result.to_json()["top"])


@pytest.mark.parametrize("family", FAMILIES)
def test_odd_pictures_get_the_right_answer_or_a_typed_refusal(family: str, models: dict[str, Path]) -> None:
    """What Pillow can show of the three formats is answered as the predictor does; all else is a 4xx with a name."""
    rng = random.Random(f"serve {family}")
    files = [FAMILIES[family](rng)[0] for _ in range(12)]
    predictor = Predictor.load(models["classifier"])

    async def work() -> list[httpx.Response]:
        async with running({"c": opened(models["classifier"])}) as service, client_of(service) as client:
            return [await client.post("/v1/predict", files=parts([data])) for data in files]

    for data, answer in zip(files, asyncio.run(work()), strict=True):
        if answer.status_code == 200:
            assert_alike(answer.json()["results"][0]["top"], predictor([data])[0].to_json()["top"])
            continue
        assert 400 <= answer.status_code < 500
        kind = answer.json()["error"]["type"]
        if not data.startswith(SERVED):
            assert kind == ("unsupported_format" if data else "no_image")
        elif kind == "image_damaged":
            with pytest.raises(ImageError):
                predictor([data])
        else:
            assert kind == "too_many_pixels"


def test_the_description_names_every_route_and_error() -> None:
    async def work() -> dict[str, Any]:
        async with running({"a": colour_model()}) as service, client_of(service) as client:
            assert (await client.get("/docs")).status_code == 404
            page = await client.get("/")
            assert "default-src 'self'" in page.headers["content-security-policy"]
            assert page.headers["content-type"].startswith("text/html")
            return (await client.get("/openapi.json")).json()

    described = asyncio.run(work())
    assert described["paths"].keys() >= {"/v1/models", "/v1/predict", "/v1/embed", "/v1/explain", "/healthz", "/readyz"}
    predict = described["paths"]["/v1/predict"]["post"]
    assert predict["responses"].keys() >= {"200", "401", "404", "408", "413", "415", "422", "500", "503", "504"}
    assert predict["requestBody"]["content"].keys() >= {"multipart/form-data", "image/jpeg"}
    assert "top" in [parameter["name"] for parameter in predict["parameters"]]
    assert "http" not in json.dumps(described["info"])
