"""DaViT as models of transformers."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification
from transformers.utils import hub

import davit
import davit.huggingface as hf
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.davit import DaViT
from davit.preprocessing import Preprocessing

NAMES = ("red | hot", "grün", "blue")


def classifier(config: DaViTConfig, classes: tuple[str, ...] = NAMES) -> Classifier:
    model = Classifier(ClassifierConfig(backbone=config, num_classes=len(classes) or 3)).eval()
    model.classes, model.preprocessing = classes, Preprocessing(size=(64, 80), fit="squash", interpolation="bilinear")
    return model


@pytest.fixture
def ours(small_config: DaViTConfig) -> Classifier:
    return classifier(small_config)


@pytest.fixture
def folder(ours: Classifier, tmp_path: Path) -> Path:
    model, processor = hf.from_davit(ours)
    assert processor is not None
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(autouse=True)
def _registered() -> None:
    hf.register()
    hf.register()


@torch.no_grad()
def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 97, 131)


@torch.no_grad()
def test_outputs_are_our_models(ours: Classifier) -> None:
    x = images()
    maps = ours.backbone(x)
    model = hf.from_davit(ours).model
    output = model(pixel_values=x, output_hidden_states=True)
    assert torch.equal(output.logits, ours(x))
    assert output.loss is None
    for ours_map, theirs in zip(maps, output.hidden_states, strict=True):
        assert torch.equal(ours_map, theirs)
    features = hf.from_davit(ours, hf.DaViTModel).model(x)
    assert torch.equal(features.last_hidden_state, maps[-1])
    assert torch.equal(features.pooler_output, ours.features(x))
    assert features.hidden_states is None
    bare = hf.from_davit(ours.backbone, hf.DaViTModel).model(x)
    assert torch.equal(bare.pooler_output, maps[-1].mean((2, 3)))
    assert model(x, return_dict=False)[0].equal(output.logits)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(2, 1, 97, 131\)"):
        model(x[:, :1])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"drop_path": 0.3, "attentions": ("channel", "window"), "mlp_ratio": 3.0, "conv_position": False},
        {"channel_scale": "tokens", "merge_kernel": 3, "window": 12, "in_channels": 1},
        {"attentions": ("channel",), "mlp": False, "head_width": 16, "gradient_checkpointing": True},
    ],
)
def test_nothing_is_lost_on_the_way_there_and_back(
    small_config: DaViTConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    ours = classifier(small_config.override(**changes))
    ours.preprocessing = Preprocessing(size=(64, 80), mean=(0.5,) * ours.config.backbone.in_channels,
                                       std=(0.1,) * ours.config.backbone.in_channels, crop=0.7)  # fmt: skip
    model, processor = hf.from_davit(ours)
    assert processor is not None
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = hf.DaViTForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == dict(enumerate(NAMES))
    assert loaded.config.label2id == {name: index for index, name in enumerate(NAMES)}
    kept = dataclasses.replace(ours.config.backbone, gradient_checkpointing=False)  # transformers has a method for it
    assert loaded.config.architecture == kept
    assert [block.gradient_checkpointing for block in model.modules() if hasattr(block, "gradient_checkpointing")] == (
        [ours.config.backbone.gradient_checkpointing] * sum(ours.config.backbone.depths)
    )
    for back in (hf.to_davit(model, processor), hf.to_davit(loaded, processor), davit.load(tmp_path)):
        assert isinstance(back, Classifier)
        assert back.config == dataclasses.replace(ours.config, backbone=kept)
        assert (back.classes, back.preprocessing) == (NAMES, ours.preprocessing)
        assert back.state_dict().keys() == ours.state_dict().keys()
        assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())
        assert not back.training
    ours.head.bias.data.add_(1)
    assert not torch.equal(model.state_dict()["head.bias"], ours.head.bias)


def test_a_backbones_state_dict_fits_under_every_model(small_config: DaViTConfig) -> None:
    backbone = DaViT(small_config)
    config = hf.DaViTPretrainedConfig(**dataclasses.asdict(small_config))
    for kind in (hf.DaViTModel, hf.DaViTForImageClassification, hf.DaViTBackbone):
        kind(config).backbone.load_state_dict(backbone.state_dict(), strict=True)


def test_auto_classes_take_a_folder(ours: Classifier, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = images()
    with torch.no_grad():
        assert torch.equal(AutoModelForImageClassification.from_pretrained(folder)(x).logits, ours(x))
        assert torch.equal(AutoModel.from_pretrained(folder)(x).pooler_output, ours.features(x))
    config = AutoConfig.from_pretrained(folder, drop_path=0.25, out_features=["stage2", "stage4"])
    assert config.architecture.drop_path == 0.25
    assert (config.num_channels, config.hidden_size) == (3, 128)
    assert AutoBackbone.from_config(config).channels == [64, 128]
    monkeypatch.setattr(hub.hf_api(), "repo_exists", lambda _: True)  # AutoBackbone asks the hub before it looks
    backbone = AutoBackbone.from_pretrained(str(folder), out_indices=[0, 3])
    with torch.no_grad():
        found, maps = backbone(x).feature_maps, ours.backbone(x)
    assert torch.equal(found[0], maps[0])
    assert torch.equal(found[1], maps[3])
    assert (backbone.out_features, backbone.channels) == (["stage1", "stage4"], [32, 128])


def test_the_backbone_gives_the_maps_asked_for(ours: Classifier) -> None:
    model = hf.from_davit(ours, hf.DaViTBackbone).model
    x = images()
    with torch.no_grad():
        output = model(x, output_hidden_states=True)
        for ours_map, one, other in zip(ours.backbone(x), output.feature_maps, output.hidden_states, strict=True):
            assert torch.equal(ours_map, one)
            assert torch.equal(ours_map, other)
        model.out_features = ["stage3"]
        assert [tuple(x.shape) for x in model(x).feature_maps] == [(2, 96, 7, 9)]
    with pytest.raises(ValueError, match=r"davit\.explain"):
        model(x, output_attentions=True)
    for wrong in ({"out_features": ["stage5"]}, {"out_indices": [1, 4]}, {"out_features": ["stage2", "stage1"]}):
        with pytest.raises(ValueError, match=r"out_(features|indices) must be"):
            hf.DaViTPretrainedConfig(**wrong)


def test_loss_and_gradients_are_our_models(ours: Classifier) -> None:
    model = hf.from_davit(ours).model.train()
    x, labels = images(), torch.tensor([2, 0])
    output = model(pixel_values=x, labels=labels)
    assert torch.equal(output.loss, F.cross_entropy(ours.train()(x), labels))
    output.loss.backward()
    F.cross_entropy(ours(x), labels).backward()
    wanted = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0, name
        torch.testing.assert_close(parameter.grad, wanted[name])
    plain = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.activation_checkpointing_enable()
    calls: list[int] = []
    model.backbone.stages[2].blocks[0].window.register_forward_pre_hook(lambda *_: calls.append(1))
    model(pixel_values=x, labels=labels).loss.backward()
    assert len(calls) == 2  # once more on the way back
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name])
    model.config.problem_type = "multi_label_classification"
    flags = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    found = model(x, labels=flags)
    assert torch.equal(found.loss, F.binary_cross_entropy_with_logits(found.logits, flags))


def test_a_fresh_head_over_loaded_weights(ours: Classifier, folder: Path) -> None:
    model = AutoModelForImageClassification.from_pretrained(folder, num_labels=40, ignore_mismatched_sizes=True)
    state = model.state_dict()
    assert torch.equal(state["backbone.stages.3.blocks.0.channel.attn.qkv.weight"],
                       ours.backbone.stages[3].blocks[0].channel.attn.qkv.weight)  # fmt: skip
    assert torch.equal(model.head.bias, torch.zeros(40))
    assert 0.018 < model.head.weight.std() < 0.022
    assert model.config.id2label[39] == "LABEL_39"


def test_fresh_weights_are_spread_as_ours(small_config: DaViTConfig) -> None:
    theirs = hf.DaViTForImageClassification(hf.DaViTPretrainedConfig(**dataclasses.asdict(small_config), num_labels=3))
    ours = classifier(small_config)
    for name, tensor in ours.state_dict().items():
        found = theirs.state_dict()[name]
        assert float(found.std(correction=0)) == pytest.approx(float(tensor.std(correction=0)), rel=0.35, abs=0.03), (
            name
        )
        assert found.abs().max() <= tensor.abs().max() * 1.5 + 1e-6, name


def test_without_class_names(small_config: DaViTConfig, tmp_path: Path) -> None:
    davit.save(classifier(small_config, ()), tmp_path / "plain.safetensors")
    model, processor = hf.from_davit(tmp_path / "plain.safetensors")
    assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    back = hf.to_davit(model, processor)
    assert isinstance(back, Classifier)
    assert back.classes == ()
    two = Classifier(ClassifierConfig(backbone=small_config, num_classes=2))
    hf.from_davit(two).model.save_pretrained(tmp_path / "two")  # transformers leaves out the names of two classes
    loaded = davit.load(tmp_path / "two")
    assert isinstance(loaded, Classifier)
    assert loaded.config.num_classes == 2
    assert loaded.preprocessing is None


def test_what_does_not_fit_is_told(small_config: DaViTConfig, folder: Path) -> None:
    with pytest.raises(ValueError, match="no classifier head: take DaViTModel or DaViTBackbone"):
        hf.from_davit(DaViT(small_config), hf.DaViTForImageClassification)
    with pytest.raises(ValueError, match=r"this is a dense; save its \.backbone"):
        hf.from_davit(davit.models.dense.DenseBackbone(small_config))  # type: ignore[missing-attribute]
    with pytest.raises(ValueError, match="unknown weights"):
        hf.from_davit("davit_tinny.msft_in1k")
    with pytest.raises(ValueError, match="multiples of head_width=32"):
        hf.DaViTPretrainedConfig(widths=[30, 64, 96, 128])
    config = AutoConfig.from_pretrained(folder)
    config.window = 0
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        hf.DaViTModel(config)


class FakeHub:
    """What `push_to_hub` calls, writing into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        """Make the folder."""
        self.folder.mkdir(exist_ok=True)
        return type("Url", (), {"repo_id": repo_id})

    def create_commit(self, *, operations: Any, **_: Any) -> None:
        """Copy the files."""
        for operation in operations:
            with operation.as_file() as file:
                (self.folder / operation.path_in_repo).write_bytes(file.read())


def test_push_to_hub(ours: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = hub.ModelCard.load

    def there(source: Any, **_: Any) -> Any:
        if source == "me/colours" and not (tmp_path / "repo" / "README.md").exists():
            raise hub.EntryNotFoundError("none")
        return load(tmp_path / "repo" / "README.md" if source == "me/colours" else source)

    monkeypatch.setattr(hub, "_hf_api", FakeHub(tmp_path / "repo"))
    monkeypatch.setattr(hub.ModelCard, "load", there)
    model, processor = hf.from_davit(ours)
    assert processor is not None
    processor.push_to_hub("me/colours")
    model.push_to_hub("me/colours", tags=["bright"])
    processor.push_to_hub("me/colours")
    names = {path.name for path in (tmp_path / "repo").iterdir()}
    assert names == {"README.md", "config.json", "davit_classes.py", "model.safetensors", "preprocessor_config.json"}
    card = (tmp_path / "repo" / "README.md").read_text()
    assert 'pipeline("image-classification", "me/colours")' in card
    assert hub.ModelCard(card).data.to_dict()["tags"] == ["davit", "vision", "image-classification", "bright"]
    assert "| Classes | 3: red \\| hot, grün, blue |" in card
    loaded = davit.load(tmp_path / "repo")
    with torch.no_grad():
        x = images()
        assert torch.equal(loaded(x), ours(x))  # type: ignore[arg-type]


def _run(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_folder_brings_its_own_code(folder: Path, tmp_path: Path) -> None:
    """Without `register`; with davit, and without."""
    use = (
        "import torch, transformers as t\n"
        f"model = t.AutoModelForImageClassification.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        f"processor = t.AutoImageProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        "print(type(model).__module__, type(processor).__module__, (processor.size.height, processor.size.width))\n"
        f"model.save_pretrained({str(tmp_path / 'again')!r})\n"
    )
    done = _run(use, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "davit.huggingface.models davit.huggingface.image_processor (64, 80)"
    assert (tmp_path / "again" / "config.json").read_text() == (folder / "config.json").read_text()
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        "README.md", "config.json", "davit_classes.py", "model.safetensors"
    }  # fmt: skip
    without = (
        "import sys, importlib.abc\n"
        "class Gone(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'davit':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Gone())\n"
    )
    done = _run(without + use, tmp_path / "home")
    assert done.returncode == 1
    assert "requires the following packages that were not found in your environment: davit" in done.stderr


def test_importing_costs_nothing_and_the_missing_extra_is_named() -> None:
    code = (
        "import sys, davit.huggingface\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "sys.modules['transformers'] = None\n"
        "try:\n    davit.huggingface.register()\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = _run(code, Path("/nowhere"))
    assert done.stdout == "davit.huggingface needs the package of the extra hf: pip install 'davit[hf]'\n", done.stderr
