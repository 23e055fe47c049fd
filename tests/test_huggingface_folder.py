"""Folders of transformers, read and written without it: `davit convert --to hf`, `davit.load`."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import davit
import davit.huggingface as hf
from davit.cli import main
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.preprocessing import Preprocessing
from davit.weights.checkpoint import Header, write_checkpoint
from davit.weights.load import read
from odd_pictures import encode, scene

FILES = {"README.md", "config.json", "davit_classes.py", "model.safetensors", "preprocessor_config.json"}


@pytest.fixture
def model(small_config: DaViTConfig) -> Classifier:
    made = Classifier(ClassifierConfig(backbone=small_config, num_classes=3)).eval()
    made.classes, made.preprocessing = ("a|b", "grün", "c"), Preprocessing.imagenet(64)
    return made


@pytest.fixture
def folder(model: Classifier, tmp_path: Path) -> Path:
    provenance = {"licence": "MIT", "score": "top-1 12.5 <b>", "command": "davit train --out /home/me/secret"}
    davit.save(model, tmp_path / "mine.safetensors", provenance=provenance)
    assert main(["convert", str(tmp_path / "mine.safetensors"), str(tmp_path / "folder"), "--to", "hf"]) == 0
    return tmp_path / "folder"


def test_convert_there_and_back(model: Classifier, folder: Path, tmp_path: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    assert main(["convert", str(folder), str(tmp_path / "back.safetensors")]) == 0
    before, after = read(tmp_path / "mine.safetensors"), read(tmp_path / "back.safetensors")
    assert (after.header.config, after.header.classes) == (before.header.config, model.classes)
    assert after.header.preprocessing == model.preprocessing
    assert after.header.provenance["licence"] == "MIT"
    assert before.tensors.keys() == after.tensors.keys()
    assert all(torch.equal(tensor, after.tensors[name]) for name, tensor in before.tensors.items())


def test_transformers_loads_it_and_saves_the_same(model: Classifier, folder: Path, tmp_path: Path) -> None:
    loaded = hf.DaViTForImageClassification.from_pretrained(folder)
    x = torch.randn(1, 3, 97, 131)
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, model(x))
    loaded.save_pretrained(tmp_path / "theirs")
    hf.DaViTImageProcessor.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    assert {path.name for path in (tmp_path / "theirs").iterdir()} == FILES
    ours, theirs = read(folder), read(tmp_path / "theirs")
    assert ours.header == theirs.header
    assert (folder / "davit_classes.py").read_text() == (tmp_path / "theirs" / "davit_classes.py").read_text()
    by_another = hf.from_davit(folder).model.state_dict()
    assert all(torch.equal(tensor, by_another[name]) for name, tensor in model.state_dict().items())


def test_commands_take_the_folder(
    model: Classifier, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "x.png"
    picture.write_bytes(encode(scene(random.Random(0)), "PNG"))
    capsys.readouterr()
    answers = []
    for source in (folder, folder / "model.safetensors", tmp_path / "mine.safetensors"):
        assert main(["predict", "--model", str(source), str(picture), "--json"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] == answers[2]
    assert {answer["label"] for answer in json.loads(answers[0])[0]["top"]} == set(model.classes)
    assert davit.load(folder, drop_path=0.2).config.backbone.drop_path == 0.2  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_backbone_in_half_precision(small_config: DaViTConfig, tmp_path: Path, dtype: torch.dtype) -> None:
    backbone = DaViT(small_config.override(channel_scale="tokens", merge_kernel=3, window=12)).to(dtype)
    header = Header(kind="backbone", config=backbone.config)
    write_checkpoint(tmp_path / "half.safetensors", header, backbone.state_dict())
    assert main(["convert", str(tmp_path / "half.safetensors"), str(tmp_path / "out"), "--to", "hf"]) == 0
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()
    loaded = hf.DaViTBackbone.from_pretrained(tmp_path / "out")
    assert loaded.dtype == dtype
    assert loaded.config.architecture == backbone.config
    assert all(torch.equal(t, loaded.backbone.state_dict()[name]) for name, t in backbone.state_dict().items())
    assert read(tmp_path / "out").header.kind == "backbone"
    assert read(tmp_path / "out").tensors["stages.0.downsample.proj.weight"].dtype == dtype
    features = hf.DaViTModel.from_pretrained(tmp_path / "out", dtype=torch.float32)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(features(x).pooler_output, backbone.float()(x)[-1].mean((2, 3)))


def test_a_classifiers_norm_is_left_out_of_a_backbone(folder: Path, tmp_path: Path) -> None:
    hf.DaViTModel.from_pretrained(folder).save_pretrained(tmp_path / "features")
    weights = read(tmp_path / "features")
    assert (weights.header.kind, weights.left) == ("backbone", ("norm.bias", "norm.weight"))
    hf.DaViTBackbone.from_pretrained(folder, out_features=["stage4"]).save_pretrained(tmp_path / "backbone")
    assert read(tmp_path / "backbone").left == ()
    again = hf.DaViTModel.from_pretrained(tmp_path / "backbone")
    assert (again.config.pooled_norm, again.config.out_features) == (False, ["stage4"])


def test_several_files(model: Classifier, tmp_path: Path) -> None:
    hf.from_davit(model).model.save_pretrained(tmp_path, max_shard_size="1MB")
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 2
    loaded = davit.load(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    parts[0].write_bytes(parts[1].read_bytes())
    with pytest.raises(ValueError, match="get the folder anew"):
        davit.load(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(parts[0].name, f"../{parts[0].name}"))
    with pytest.raises(ValueError, match="not beside it"):
        davit.load(tmp_path)


def test_the_card_says_what_the_model_is(folder: Path, model: Classifier) -> None:
    card = (folder / "README.md").read_text()
    assert 'license: "mit"' in card
    assert "pipeline_tag: image-classification" in card
    assert f"| Parameters | {sum(p.numel() for p in model.parameters()):,} |" in card
    assert "| Pictures | 64 x 64, crop, the central 0.9, bicubic |" in card
    assert "| Classes | 3: a\\|b, grün, c |" in card
    assert "| Score | top-1 12.5 &lt;b> |" in card
    assert "secret" not in card
    (folder / "README.md").write_text("my own words")
    hf.DaViTForImageClassification.from_pretrained(folder).save_pretrained(folder)
    assert (folder / "README.md").read_text() == "my own words"


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("config.json", '{"model_type": "davit", "widths": [30, 64, 96, 128]', "config.json is no JSON"),
        ("config.json", '{"model_type": "vit", "widths": [30, 64, 96, 128]}', "davit.create_model"),
        ("config.json", '{"model_type": "davit", "widths": [30, 64, 96, 128]}', "multiples of head_width"),
        ("config.json", '{"model_type": "davit", "widths": 3}', "folder: "),
        ("config.json", '{"model_type": "davit", "widths": [32, 64, 96, 128]}', "tensors missing"),
        (
            "config.json",
            '{"model_type": "davit", "widths": [32], "architectures": ["SwinModel"]}',
            "unknown architecture",
        ),
        ("preprocessor_config.json", "[]", "preprocessor_config.json holds a list"),
        ("preprocessor_config.json", '{"image_processor_type": "ViTImageProcessor"}', "is of a ViTImageProcessor"),
        ("preprocessor_config.json", '{"crop": 1}', "lacks size, image_mean, image_std"),
        ("model.safetensors", "rubbish", "folder"),
        ("model.safetensors", None, "holds no model.safetensors"),
    ],
)
def test_wrong_folders_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, text: str | None, told: str
) -> None:
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    capsys.readouterr()
    assert main(["convert", str(folder), str(tmp_path / "out.safetensors")]) == 2
    error = capsys.readouterr().err
    assert str(folder) in error
    assert told in error
    assert not (tmp_path / "out.safetensors").exists()


def test_what_has_no_place_in_a_folder_is_told(
    small_config: DaViTConfig, model: Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    davit.save(DenseBackbone(small_config), tmp_path / "dense.safetensors")
    assert main(["convert", str(tmp_path / "dense.safetensors"), str(tmp_path / "out"), "--to", "hf"]) == 2
    assert "this is a dense; save its .backbone" in capsys.readouterr().err
    davit.save(model, tmp_path / "mine.safetensors")
    assert main(["convert", str(tmp_path / "mine.safetensors"), str(tmp_path / "dense.safetensors"), "--to", "hf"]) == 2
    assert "is a file; transformers takes a folder" in capsys.readouterr().err


def test_writing_and_reading_need_no_transformers(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['transformers'] = None\n"
        "from davit.cli import main\n"
        f"assert main(['convert', {str(folder)!r}, {str(tmp_path / 'x.safetensors')!r}]) == 0\n"
        f"assert main(['convert', {str(tmp_path / 'x.safetensors')!r}, {str(tmp_path / 'y')!r}, '--to', 'hf']) == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    first, second = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "y"))
    first.pop("provenance"), second.pop("provenance")
    assert first == second
