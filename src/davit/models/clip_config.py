"""The image-text model as data; no torch here."""

from dataclasses import dataclass, field

from davit.models.config import DaViTConfig


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A text transformer as open_clip builds it; the defaults are those of its ViT-B models.

    Attributes:
        context: tokens of a text, its start and end included; longer ones are cut.
        vocabulary: kinds of tokens; 49,408 is the byte-pair vocabulary of CLIP.
        width: channels of each token.
        heads: attention heads.
        layers: attention blocks.
        quick_gelu: take `x sigmoid(1.702 x)` for the GELU, as OpenAI's own weights do.
    """

    context: int = 77
    vocabulary: int = 49408
    width: int = 512
    heads: int = 8
    layers: int = 12
    quick_gelu: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if min(self.context, self.vocabulary) < 3 or min(self.width, self.heads, self.layers) < 1:
            raise ValueError(
                "a text tower needs context and vocabulary of at least 3, width, heads and layers of at least 1, got "
                f"{self.context}, {self.vocabulary}, {self.width}, {self.heads} and {self.layers}"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} of the text tower must be a multiple of its {self.heads} heads")


@dataclass(frozen=True, kw_only=True)
class ImageTextHead:
    """What turns a backbone into an image-text model.

    Attributes:
        embedding: length of the vectors that images and texts share.
        text: the text tower.
        template: how a class becomes a caption such as those it learnt from, with `{}` for the class's name; what
            zero-shot use takes where nothing else is said.
    """

    embedding: int = 512
    text: TextConfig = field(default_factory=TextConfig)
    template: str = "a photo of a {}."

    def __post_init__(self) -> None:
        """Refuse a space without dimensions, and captions without a name."""
        if self.template.count("{}") != 1:
            raise ValueError(f"template must have {{}} once, where the name goes, got {self.template!r}")
        if self.embedding < 1:
            raise ValueError(f"embedding must be at least 1, got {self.embedding}")


@dataclass(frozen=True, kw_only=True)
class ImageTextConfig:
    """A backbone and what stands on and beside it."""

    backbone: DaViTConfig
    head: ImageTextHead = field(default_factory=ImageTextHead)
