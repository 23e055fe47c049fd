"""Model cards, a page for each member of the family, from the code: run this file to write them anew."""

from pathlib import Path

from davit.models.complexity import count_macs, count_parameters, map_size, stage_costs
from davit.models.config import STRIDES, DaViTConfig
from davit.models.variants import IMAGE_SIZES, VARIANTS
from davit.recipes import about_recipe
from davit.recipes.imagenet import MEMBERS
from davit.weights.catalog import WEIGHTS, WeightEntry

FOLDER = Path(__file__).parent / "models"
USUAL = 224  # px; every card has the costs at this size, whatever the member is made for

_CLASSIFIERS = (
    "Classification of photographs into the classes that it was trained on; the start of a classifier, detector or "
    "segmenter of your own ([train](../train.md), [detection and segmentation](../detection-and-segmentation.md)); "
    "vectors that say how alike pictures are (`davit embed`)."
)
_LIMITS = (
    "ImageNet's 1,000 classes are objects and animals, 120 of them breeds of dogs, in photographs from the web: any "
    "other picture gets one of these names all the same, and a high score is no proof.",
    "What its pictures over- and under-represent, it does too. Nobody here measured it by region, age or skin; it is "
    "not made to judge people.",
    "The scores are the publishers'. They could not be measured again where davit is made; "
    "`davit evaluate {weights} --data imagenet/val` does it where you have the pictures.",
)
_UNRELEASED = (
    "No weights of this size were ever released: it must be trained, which takes many GPUs ([recipes](../recipes.md)).",
)
_SMALL_USES = (
    "Training on a CPU, tests, and small data sets: these members are ours, not the paper's, and follow its rules for "
    "widths and depths. `make demo` trains one."
)
_SMALL_LIMITS = ("There are no public weights, and no score on ImageNet is known.",)
_TOWER_USES = (
    "Four maps, or one vector of an image, for a head of your own: detection, segmentation, classification by a probe "
    "(`davit evaluate --probe both`). Florence-2 gives it {size} px."
)
_TOWER_LIMITS = (
    "It is the image tower alone. Florence-2's language model, which answers with text, is neither loaded nor run.",
    "There is no classifier: `davit predict` refuses it, and `davit.load` returns a backbone.",
    "It learned from pictures and texts of the web, with what these hold of prejudice: see the publishers' pages.",
    "Files of Florence-2 are float16 and hold all of it; davit computes in float32, where these weights are exact.",
)
_MEDICAL = (
    "`{name}` is for medical pictures, in research: davit is no medical device, and nothing of it was checked for "
    "diagnosis.",
)


def cards() -> dict[str, str]:
    """The text of each page by its file name."""
    pages = {f"{name}.md": card(name) for name in VARIANTS}
    return {"index.md": overview(), **pages}


def overview() -> str:
    """One line for each member."""
    rows = ["| Model | Parameters | MACs at 224 px | Made for | Public weights |", "| --- | --- | --- | --- | --- |"]
    for name, config in VARIANTS.items():
        macs = count_macs(config, USUAL, USUAL, _classes(name))
        weights = ", ".join(f"`{entry.name}`" for entry in _weights(name)) or "none"
        parameters = count_parameters(config, _classes(name))
        costs = f"{_millions(parameters)} | {_billions(macs)} | {IMAGE_SIZES[name]} px"
        rows.append(f"| [`{name}`]({name}.md) | {costs} | {weights} |")
    return "\n".join(
        [
            "# Model cards",
            "",
            "`docs/make_model_cards.py` makes these pages from the code that builds the models. Parameters and",
            "multiply-adds (MACs) are for one image, with a head of 1,000 classes; Florence-2's towers have none.",
            "",
            *rows,
            "",
        ]
    )


def card(name: str) -> str:
    """One page."""
    config, weights = VARIANTS[name], _weights(name)
    lines = [f"# {_title(name)}", "", _summary(name, config), "", "```python", "import davit", ""]
    if weights:
        what = "a classifier" if weights[0].num_classes else "a backbone"
        lines.append(f'model = davit.load("{weights[0].name}")  # {what}; downloaded once')
    else:
        lines.append(f'model = davit.create_model("{name}", num_classes=10)  # fresh weights')
    lines += [f'maps = davit.create_backbone("{name}")(images)  # four maps, fresh weights', "```", ""]
    lines += ["## Architecture", "", *_architecture(name, config), ""]
    lines += ["## Costs", "", *_costs(name, config), ""]
    lines += ["## Weights", "", *_public(weights), ""]
    if recipes := _recipes(name):
        lines += ["## Training", "", *recipes, ""]
    lines += ["## Use", "", _use(name), "", "## Limits", "", *_limits(name), ""]
    return "\n".join(lines)


def _title(name: str) -> str:
    words = name.removeprefix("davit_").split("_")
    names = {"large": "Large", "384": "at 384 px", "florence2": "tower of Florence-2"}
    return "DaViT " + " ".join(names.get(word, word.capitalize()) for word in words)


def _summary(name: str, config: DaViTConfig) -> str:
    blocks = sum(config.depths)
    origin = "of arXiv 2204.03645"
    if name.endswith("florence2"):
        origin = "as Florence-2 has it (arXiv 2311.06242)"
    elif name in ("davit_pico", "davit_nano"):
        origin = "of davit's own, for CPUs"
    return (
        f"A Dual Attention Vision Transformer {origin}: {blocks} dual blocks of window and channel attention in four "
        f"stages, {_millions(count_parameters(config, None))} parameters in the backbone."
    )


def _architecture(name: str, config: DaViTConfig) -> list[str]:
    size = IMAGE_SIZES[name]
    rows = [
        f"| Stage | Stride | Map at {size} px | Channels | Heads, groups | Dual blocks | GMACs at {size} px |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for stage, cost in enumerate(stage_costs(config, size, size)):
        side, width = map_size(size, stage), config.widths[stage]
        rows.append(
            f"| {stage + 1} | {STRIDES[stage]} | {side} x {side} | {width} | {width // config.head_width} | "
            f"{config.depths[stage]} | {cost.total / 1e9:,.2f} |"
        )
    scale = "a group's channels (the paper)" if config.channel_scale == "channels" else "positions (Florence-2)"
    merge = "2 x 2" if config.merge_kernel == 2 else "3 x 3, overlapped"
    facts = [
        f"- windows of {config.window} x {config.window} positions; heads and groups of {config.head_width} channels",
        f"- merging convolutions of {merge}, stride 2; stem of 7 x 7, stride 4",
        f"- logits of channel attention divided by the square root of the number of {scale}",
        f"- MLPs of {config.mlp_ratio:g} times the channels; a 3 x 3 depth-wise convolution before MLPs and attentions",
    ]
    return [*rows, "", *facts]


def _costs(name: str, config: DaViTConfig) -> list[str]:
    classes = _classes(name)
    head = f" and a head of {classes:,} classes" if classes else ""
    lines = [
        f"| | Backbone | With{head} |" if classes else "| | Backbone |",
        "| --- | --- | --- |" if classes else "| --- | --- |",
        _row("Parameters", count_parameters(config, None), classes and count_parameters(config, classes)),
    ]
    for size in dict.fromkeys((USUAL, IMAGE_SIZES[name])):
        whole = classes and count_macs(config, size, size, classes)
        lines.append(_row(f"MACs at {size} px", count_macs(config, size, size, None), whole))
    told = (
        f"`davit models {name}` prints them; `davit benchmark models {name}` measures time and memory on your machine."
    )
    return [line.replace("With and", "With") for line in lines] + ["", told]


def _row(what: str, backbone: int, whole: int | None) -> str:
    return f"| {what} | {backbone:,} |" + (f" {whole:,} |" if whole else "")


def _public(weights: list[WeightEntry]) -> list[str]:
    if not weights:
        return ["None are public."]
    rows = ["| Name | Score | Licence | Source | Prepared for |", "| --- | --- | --- | --- | --- |"]
    for entry in weights:
        height, width = entry.preprocessing.size
        prepared = f"{height} x {width} px, crop {entry.preprocessing.crop:g}, {entry.preprocessing.fit}"
        source = f"[{entry.repo}]({entry.url})"
        rows.append(f"| `{entry.name}` | {entry.score or 'none known'} | {entry.licence} | {source} | {prepared} |")
    return [*rows, "", *(f"- `{entry.name}`: {entry.note}." for entry in weights if entry.note)]


def _recipes(name: str) -> list[str]:
    return [
        f"- `{about_recipe(recipe).command}`; score to expect: {member.expected}."
        for recipe, member in MEMBERS.items()
        if member.variant == name
    ]


def _use(name: str) -> str:
    if name.endswith("florence2"):
        return _TOWER_USES.format(size=IMAGE_SIZES[name])
    return _SMALL_USES if name in ("davit_pico", "davit_nano") else _CLASSIFIERS


def _limits(name: str) -> list[str]:
    weights = _weights(name)
    limits = list(_SMALL_LIMITS if name in ("davit_pico", "davit_nano") else _UNRELEASED)
    if name.endswith("florence2"):
        limits = list(_TOWER_LIMITS)
        limits += [text.format(name=entry.name) for entry in weights if "medimage" in entry.name for text in _MEDICAL]
    elif weights:
        limits = [text.format(weights=weights[0].name) for text in _LIMITS]
    return [f"- {text}" for text in limits]


def _weights(name: str) -> list[WeightEntry]:
    return [entry for entry in WEIGHTS.values() if entry.variant == name]


def _classes(name: str) -> int | None:
    return None if name.endswith("florence2") else 1000


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f} M"


def _billions(number: int) -> str:
    return f"{number / 1e9:,.2f} G"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in cards().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
