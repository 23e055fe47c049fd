"""The README.md of a folder for Hugging Face's transformers: what the model is, takes and comes from."""

import json
from collections.abc import Sequence
from typing import Any

from davit.models.complexity import count_macs
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.variants import VARIANTS
from davit.preprocessing import Preprocessing
from davit.weights.checkpoint import Header
from davit.weights.convert.infer import without_training

_CLASSIFY = """```python
from transformers import pipeline

import davit.huggingface  # pip install 'davit[hf]'

davit.huggingface.register()  # or pass trust_remote_code=True
print(pipeline("image-classification", "{here}")("cat.jpg"))
```
"""
_FEATURES = """```python
import davit.huggingface  # pip install 'davit[hf]'

backbone = davit.huggingface.DaViTBackbone.from_pretrained("{here}")
maps = backbone(pixel_values).feature_maps  # (B, C, H, W) at strides 4, 8, 16, 32
```
"""
_NAMED = 8  # classes that the card names


def model_card(header: Header, parameters: int, *, here: str | None = None, tags: Sequence[str] = ()) -> str:
    """Write the card.

    Args:
        header: what the model is.
        parameters: how many numbers it has.
        here: what its users call the folder.
        tags: more of them.
    """
    classifier = isinstance(header.config, ClassifierConfig)
    title = _variant(header.backbone) or "DaViT"
    provenance = {key: value for key, value in header.provenance.items() if key != "command"}  # its paths are private
    rows = {
        "Architecture": _architecture(header.backbone),
        "Parameters": f"{parameters:,}",
        **_pictures(header),
        **({"Classes": _classes(header)} if classifier else {}),
        **{key.replace("_", " ").capitalize(): _told(value) for key, value in provenance.items()},
    }
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    purpose = "image classifier" if classifier else "backbone"
    snippet = (_CLASSIFY if classifier else _FEATURES).format(here=here or "name-of-this-folder")
    return (
        f"{_front_matter(header, classifier, tags)}\n# {title}\n\n"
        f"A DaViT {purpose} (Dual Attention Vision Transformer, [arXiv 2204.03645](https://arxiv.org/abs/2204.03645)).\n"
        f"\n| | |\n| --- | --- |\n{table}\n\n## Use\n\n{snippet}\n"
        "`davit.load` and the commands of davit take the folder, too.\n"
    )


def _front_matter(header: Header, classifier: bool, tags: Sequence[str]) -> str:
    task = "image-classification" if classifier else "image-feature-extraction"
    all_tags = dict.fromkeys(["davit", "vision", task, *tags])
    lines = [
        "library_name: transformers",
        f"pipeline_tag: {task}",
        "tags:",
        *(f"- {json.dumps(tag)}" for tag in all_tags),
    ]
    licence = header.provenance.get("licence")
    if isinstance(licence, str):
        lines.append(f"license: {json.dumps(licence.lower())}")
    return "\n".join(["---", *lines, "---", ""])


def _variant(config: DaViTConfig) -> str | None:
    plain = without_training(config)
    return next((name for name, known in VARIANTS.items() if known == plain), None)


def _architecture(config: DaViTConfig) -> str:
    widths, depths = ", ".join(map(str, config.widths)), ", ".join(map(str, config.depths))
    merging = f"{config.merge_kernel}x{config.merge_kernel}"
    return (
        f"widths {widths}; depths {depths}; {' then '.join(config.attentions)} attention; windows of {config.window}; "
        f"{merging} merging; channel attention scaled by {config.channel_scale}"
    )


def _pictures(header: Header) -> dict[str, str]:
    preprocessing = header.preprocessing
    if preprocessing is None:
        return {"Pictures": "see preprocessor_config.json, where there is one"}
    height, width = preprocessing.size
    classes = header.config.num_classes if isinstance(header.config, ClassifierConfig) else None
    return {
        "Pictures": _prepared(preprocessing),
        "Multiply-adds per picture": f"{count_macs(header.backbone, height, width, classes):,}",
    }


def _prepared(preprocessing: Preprocessing) -> str:
    height, width = preprocessing.size
    cut = f", the central {preprocessing.crop:g}" if preprocessing.fit == "crop" else ""
    return f"{width} x {height}, {preprocessing.fit}{cut}, {preprocessing.interpolation}"


def _classes(header: Header) -> str:
    assert isinstance(header.config, ClassifierConfig)
    count = header.config.num_classes
    if not header.classes:
        return f"{count}, without names"
    more = f" and {count - _NAMED} more" if count > _NAMED else ""
    return f"{count}: {', '.join(header.classes[:_NAMED])}{more}"


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
