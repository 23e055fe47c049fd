"""Public weights by name: where they are, what they are, and under which licence; data only."""

from dataclasses import dataclass
from typing import Any

from davit.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class WeightEntry:
    """Weights that someone published.

    Attributes:
        name: ours, `variant.origin`.
        repo: repository on the Hugging Face hub.
        file: path of the file in it.
        revision: commit or branch; a commit where the file was seen, so that it stays what it was.
        licence: SPDX identifier.
        variant: the architecture.
        preprocessing: what its published score was measured with.
        num_classes: classes of its head, or None for a bare tower.
        score: published, with the conditions; empty if none is known.
        top1: ImageNet-1K top-1 in percent, if that is the score.
        sha256: of the file, where verified; the hub's own hash is checked in any case.
        note: what else to know.
    """

    name: str
    repo: str
    file: str
    revision: str
    licence: str
    variant: str
    preprocessing: Preprocessing
    num_classes: int | None = None
    score: str = ""
    top1: float | None = None
    sha256: str | None = None
    note: str = ""

    @property
    def url(self) -> str:
        """Page of the repository."""
        return f"https://huggingface.co/{self.repo}"

    def provenance(self) -> dict[str, Any]:
        """What a checkpoint made of these weights says about them."""
        values = {
            "weights": self.name,
            "source": f"{self.url}/blob/{self.revision}/{self.file}",
            "licence": self.licence,
            "score": self.score,
        }
        return {key: value for key, value in values.items() if value}


def class_names(entry: WeightEntry) -> tuple[str, ...]:
    """A name per logit."""
    return imagenet_classes() if entry.num_classes == 1000 else ()


def imagenet_classes() -> tuple[str, ...]:
    """The 1000 classes of ImageNet-1K in order, as WordNet words; the two cranes get their synset."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    names = [str(name) for name in info.label_descriptions()]
    return tuple(
        f"{name} ({synset})" if names.count(name) > 1 else name
        for name, synset in zip(names, info.label_names(), strict=True)
    )


def _imagenet(size: str, top1: float, file: str, revision: str) -> WeightEntry:
    return WeightEntry(
        name=f"davit_{size}.msft_in1k",
        repo=f"timm/davit_{size}.msft_in1k",
        file=file,
        revision=revision,
        licence="Apache-2.0",
        variant=f"davit_{size}",
        preprocessing=Preprocessing.imagenet(224, crop=0.95),
        num_classes=1000,
        score=f"ImageNet-1K top-1 {top1} at 224, crop 0.95 (timm)",
        top1=top1,
        note="the authors' weights, republished by timm; arXiv 2204.03645",
    )


def _florence(variant: str, repo: str, origin: str, revision: str) -> WeightEntry:
    return WeightEntry(
        name=f"{variant}.{origin}",
        repo=f"microsoft/{repo}",
        file="pytorch_model.bin",
        revision=revision,
        licence="MIT",
        variant=variant,
        preprocessing=Preprocessing(size=(768, 768), crop=1.0, fit="squash"),
        note=f"vision tower of {repo}, float16; the file holds the language model too; arXiv 2311.06242",
    )


# Files and revisions are those listed on the hub's pages; where a commit is given, the file was listed at it.
_ENTRIES = (
    _imagenet("tiny", 82.694, "model.safetensors", "main"),
    _imagenet("small", 84.252, "model.safetensors", "main"),
    _imagenet("base", 84.652, "pytorch_model.bin", "3e401df7ce1456c030710c2f17776e27e1aeeb54"),
    _florence("davit_base_florence2", "Florence-2-base", "florence2", "ceaf371f01ef66192264811b390bccad475a4f02"),
    _florence("davit_base_florence2", "Florence-2-base-ft", "florence2_ft", "9803f52844ec1ae5df004e6089262e9a23e527fd"),
    _florence("davit_huge_florence2", "Florence-2-large", "florence2", "0f7c9382aeac29bf66518f21440ee2f4c0a93fd5"),
    _florence("davit_huge_florence2", "Florence-2-large-ft", "florence2_ft", "refs/pr/20"),
    WeightEntry(
        name="davit_huge_florence2.medimageinsight",
        repo="lion-ai/MedImageInsights",
        file="2024.09.27/vision_model/medimageinsigt-v1.0.0.pt",
        revision="c3a1ea9b7cb791fdd810a3ee2540ec2e8aa9af4f",
        licence="MIT",
        variant="davit_huge_florence2",
        preprocessing=Preprocessing(size=(480, 480), crop=1.0, fit="squash"),
        note="image tower of MedImageInsight without its final norm; preprocessing beyond the size of 480 is assumed; "
        "arXiv 2410.06542",
    ),
)

WEIGHTS: dict[str, WeightEntry] = {entry.name: entry for entry in _ENTRIES}
