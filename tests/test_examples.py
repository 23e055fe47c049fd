"""Every script in examples/, on small models and pictures; the maps that others get are the backbone's own."""

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import davit
import davit.huggingface as hf
from davit.cli import main
from davit.inference.backends.onnx_export import export_onnx
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.davit import DaViT
from davit.preprocessing import Preprocessing
from odd_pictures import encode, exif
from runs import colour_folder

EXAMPLES = Path(__file__).parent.parent / "examples"
SIZES = [(96, 160), (97, 131)]  # both pad windows; the second pads merging, too


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # timm looks there
    spec.loader.exec_module(module)
    return module


def same(found: Any, backbone: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        wanted = backbone(images)
    assert len(found) == len(wanted)
    for x, ours, stride in zip(found, wanted, (4, 8, 16, 32), strict=True):
        assert x.shape[2:] == (-(-images.shape[2] // stride), -(-images.shape[3] // stride))
        torch.testing.assert_close(x, ours, atol=1e-6, rtol=0)


def learns(loss: Tensor, backbone: nn.Module) -> None:
    assert loss.isfinite()
    loss.backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.fixture
def backbone(small_config: DaViTConfig) -> DaViT:
    return DaViT(small_config).eval()


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    return colour_folder(tmp_path / "colours")


@pytest.fixture
def weights(small_config: DaViTConfig, tmp_path: Path) -> str:
    model = Classifier(ClassifierConfig(backbone=small_config.override(window=4), num_classes=7))
    model.preprocessing, model.classes = Preprocessing.imagenet(32), tuple("abcdefg")
    davit.save(model, tmp_path / "weights.safetensors")
    return str(tmp_path / "weights.safetensors")


def printed(function: Any, *arguments: Any, **options: Any) -> list[str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        function(*arguments, **options)
    return out.getvalue().splitlines()


@pytest.fixture
def _timm_forgets() -> Iterator[None]:
    from timm.models import _registry

    yield
    _registry._model_entrypoints.pop("davit_pico", None)
    _registry._clear_model_entries("davit_pico")


@pytest.mark.usefixtures("_timm_forgets")
@pytest.mark.parametrize("size", SIZES)
def test_timm(size: tuple[int, int]) -> None:
    import timm

    module = example("timm_backbone")
    features = timm.create_model("davit_pico", features_only=True, pretrained=False)
    images = torch.randn(1, 3, *size)
    same(features(images), features.backbone, images)
    learns(sum(x.square().mean() for x in features(images)), features.backbone)
    assert features.feature_info.channels() == list(features.backbone.channels)
    assert features.feature_info.reduction() == [4, 8, 16, 32]
    some = timm.create_model("davit_pico", features_only=True, out_indices=(-3, 3), in_chans=1)
    assert [x.shape[1] for x in some(images[:, :1])] == some.feature_info.channels() == [64, 256]
    assert timm.create_model("davit_pico", num_classes=5)(images).shape == (1, 5)
    assert len(printed(module.main)) == 3


@pytest.mark.parametrize("size", SIZES)
def test_torchvision_detector(backbone: DaViT, size: tuple[int, int]) -> None:
    module = example("torchvision_detector")
    detector = module.make_detector(backbone, num_classes=3, size=96, width=16)
    images = torch.randn(1, 3, *size)
    same(detector.backbone.body(images), backbone, images)
    maps = detector.backbone(images)
    assert [x.shape[1] for x in maps.values()] == [16] * 5
    target = {"boxes": torch.tensor([[10.0, 12, 60, 70]]), "labels": torch.tensor([2])}
    losses = detector.train()([images[0].sigmoid()], [target])
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    learns(sum(losses.values()), backbone)
    first, last = module.train(detector, steps=2)
    assert np.isfinite([first, last]).all()


@pytest.mark.parametrize("decoder", ["Unet", "FPN", "UPerNet"])
def test_segmentation_models_pytorch(decoder: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    module = example("smp_segmentation")
    module.register("davit_pico")
    model = getattr(smp, decoder)("davit_pico", encoder_weights=None, classes=5)
    for size in SIZES[: 2 if decoder == "Unet" else 1]:  # the others refuse sides that are no multiples of 32
        images = torch.randn(2, 3, *size)
        found = model.encoder(images)
        assert torch.equal(found[0], images)
        assert found[1].shape[1] == 0
        same(found[2:], model.encoder.backbone, images)
        logits = model.train()(images)
        assert logits.shape[:2] == (2, 5)
        model.zero_grad()
        learns(logits.square().mean(), model.encoder.backbone)
    with pytest.raises(ValueError, match="depth 5 and output stride 32, got 4 and 32"):
        getattr(smp, decoder)("davit_pico", encoder_weights=None, encoder_depth=4)


@pytest.mark.parametrize("size", SIZES)
def test_transformers_upernet(backbone: DaViT, tmp_path: Path, size: tuple[int, int]) -> None:
    model = example("transformers_upernet").make_segmenter(backbone, num_labels=4, width=16)
    images = torch.randn(2, 3, *size)
    assert isinstance(model.backbone, hf.DaViTBackbone)
    same(model.backbone(images).feature_maps, backbone, images)
    output = model.train()(pixel_values=images, labels=torch.randint(0, 4, (2, *size)))
    assert output.logits.shape == (2, 4, *size)
    learns(output.loss, model.backbone)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    same(again.backbone(images).feature_maps, backbone, images)


def test_predict_folder(weights: str, colours: Path) -> None:
    (colours / "broken.png").write_bytes(b"no picture")
    lines = printed(example("predict_folder").main, weights, str(colours))
    results = davit.Predictor.load(weights)(sorted(colours.rglob("*[0-9].png")), top=1)
    assert len(lines) == len(results) + 2
    told = {line.split()[0]: line.split()[-1] for line in lines[1:] if "broken" not in line}
    assert told == {result.source: result.labels[0] for result in results}  # type: ignore[union-attr]
    assert any("broken.png" in line and "is no picture" in line for line in lines)


def test_finetune_pytorch(weights: str, colours: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "mine.safetensors")
    module = example("finetune_pytorch")
    losses: list[float] = []
    printed(lambda: losses.extend(module.main(str(colours), weights, out, epochs=4, batch_size=8)))
    assert losses[-1] < losses[0]
    model = davit.load(out)
    assert model.classes == ("blue", "green", "red")  # type: ignore[union-attr]
    before = davit.load(weights).state_dict()
    for name, tensor in model.state_dict().items():
        assert name.startswith("head") or not torch.equal(tensor, before[name]), name


def test_finetune_trainer(weights: str, colours: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    trainer = example("finetune_trainer").main(str(colours), weights, str(tmp_path / "out"), epochs=3, batch_size=8)
    assert np.isfinite(trainer.state.log_history[-1]["train_loss"])
    model = davit.load(tmp_path / "out")
    assert (model.classes, model.preprocessing) == (("blue", "green", "red"), Preprocessing.imagenet(32))  # type: ignore[union-attr]
    before = davit.load(weights).state_dict()
    assert not torch.equal(model.state_dict()["backbone.stages.0.downsample.proj.weight"],
                           before["backbone.stages.0.downsample.proj.weight"])  # fmt: skip


def test_the_trainers_model_starts_from_the_weights(weights: str, colours: Path) -> None:
    """What needs no `accelerate`."""
    module = example("finetune_trainer")
    model, processor = module.with_new_head(weights, ["blue", "green", "red"])
    before = davit.load(weights).state_dict()
    for name, tensor in model.state_dict().items():
        assert name.startswith("head") or torch.equal(tensor, before[name]), name
    assert model.config.label2id == {"blue": 0, "green": 1, "red": 2}
    sample = module.Pictures(str(colours), processor)[0]
    assert sample["pixel_values"].shape == (3, 32, 32)
    loss = model.train()(sample["pixel_values"][None], labels=torch.tensor([sample["labels"]])).loss
    learns(loss, model.backbone)


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing.imagenet(64),
        Preprocessing(size=(48, 80), crop=0.8, interpolation="bilinear"),
        Preprocessing(size=(64, 64), fit="squash", interpolation="lanczos"),
        Preprocessing(size=(48, 90), fit="within"),
        Preprocessing(size=(64, 64), mean=(0.4,), std=(0.3,)),
    ],
)
def test_preparing_without_davit_is_davits(preprocessing: Preprocessing) -> None:
    prepare = example("onnx_without_davit").prepare
    rng = np.random.default_rng(0)
    for size in ((97, 131), (200, 60), (50, 50)):
        picture = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        how = json.loads(json.dumps(davit.records.to_json(preprocessing)))  # type: ignore[missing-attribute]
        np.testing.assert_allclose(prepare(picture, how)[0], preprocessing(picture), atol=1e-6)


@pytest.mark.slow
def test_onnx_without_davit(weights: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model = davit.load(weights)
    with torch.no_grad():
        model.head.weight.mul_(30)  # type: ignore[operator, union-attr]
    export_onnx(model, tmp_path / "model.onnx")
    picture = tmp_path / "turned.jpg"
    picture.write_bytes(encode(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8), "JPEG", exif=exif(6)))
    code = (
        "import sys, runpy\n"
        "for name in ('davit', 'torch', 'torchvision', 'timm'):\n    sys.modules[name] = None\n"
        f"sys.argv = ['', {str(tmp_path / 'model.onnx')!r}, {str(picture)!r}]\n"
        f"runpy.run_path({str(EXAMPLES / 'onnx_without_davit.py')!r}, run_name='__main__')\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    wanted = davit.Predictor.load(tmp_path / "model.onnx")(picture)[0]
    assert [row[2] for row in rows] == list(wanted.labels)  # type: ignore[union-attr]
    assert [float(row[1]) for row in rows] == pytest.approx(list(wanted.scores), abs=2e-5)  # type: ignore[union-attr]
    assert main(["predict", "--model", str(tmp_path / "model.onnx"), str(picture)]) == 0


def test_every_example_is_told_of_and_tested() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    here = Path(__file__).read_text(encoding="utf-8")
    page = (EXAMPLES.parent / "docs" / "integrations.md").read_text(encoding="utf-8")
    for name in names:
        assert f'example("{name}")' in here
        assert f"examples/{name}.py" in page
        assert f"python examples/{name}.py" in (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
