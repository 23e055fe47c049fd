"""The snippets of docs/huggingface.md and docs/integrations.md, run as they stand."""

import random
import re
from pathlib import Path
from typing import Any

import pytest

import davit
from davit.cli import main
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.preprocessing import Preprocessing
from odd_pictures import encode, scene

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("page", ["huggingface.md", "integrations.md"])
def test_snippets_run(page: str, small_config: DaViTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.PreTrainedModel.push_to_hub", lambda *_: None)
    monkeypatch.setattr("davit.huggingface.DaViTImageProcessor.push_to_hub", lambda *_: None)
    model = Classifier(ClassifierConfig(backbone=small_config, num_classes=5))
    model.preprocessing, model.classes = Preprocessing.imagenet(64), tuple("abcde")
    davit.save(model, "mine.safetensors")
    for name, form in (("cat.jpg", "JPEG"), ("dog.png", "PNG")):
        Path(name).write_bytes(encode(scene(random.Random(1)), form))
    names: dict[str, Any] = {}
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) > 1
    for language, code in blocks:
        if language == "python":
            exec(compile(code, page, "exec"), names)
        else:
            for line in code.splitlines():
                assert main(line.removeprefix("davit ").split()) == 0, line
