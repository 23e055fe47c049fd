"""DaViT with the faces that transformers expects; the modules and the names of the tensors are ours."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from torch import Tensor, nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from davit.huggingface.configuration import STAGES, DaViTPretrainedConfig
from davit.models.blocks import NORM_EPS
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig
from davit.models.davit import DaViT, init_linear
from davit.preprocessing import Preprocessing
from davit.weights.checkpoint import Header
from davit.weights.convert.huggingface import CLASSIFIER, MODEL, to_header
from davit.weights.huggingface_card import model_card
from davit.weights.huggingface_folder import CARD, write_text


class DaViTPreTrainedModel(PreTrainedModel):
    """What the models share: loading, saving, fresh weights as ours are."""

    config: DaViTPretrainedConfig  # type: ignore[bad-override-mutable-attribute]  # as all their models narrow it
    config_class = DaViTPretrainedConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DualAttentionBlock"]  # noqa: RUF012 (as transformers has it)

    backbone: DaViT

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.LayerNorm):
            module.reset_parameters()
        init_linear(module)

    def _maps(self, pixel_values: Tensor) -> list[Tensor]:
        channels = self.backbone.config.in_channels
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(f"pixel_values must be (B, {channels}, H, W), got {tuple(pixel_values.shape)}")
        return self.backbone(pixel_values)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Do nothing: every saved folder says where its classes are."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, with a model card unless the folder has one."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / CARD).exists():
            write_text(folder / CARD, self._card())
        super().save_pretrained(save_directory, *args, **kwargs)

    def _upload_modified_files(self, working_dir: str | os.PathLike[str], repo_id: str, *args: Any, **kw: Any) -> Any:
        card = Path(working_dir) / CARD
        if card.is_file() and "automatically generated" in card.read_text(encoding="utf-8"):  # transformers' empty form
            tags = ModelCard.load(card).data.to_dict().get("tags") or []
            write_text(card, self._card(repo_id, tags))
        return super()._upload_modified_files(working_dir, repo_id, *args, **kw)

    def header(self, preprocessing: Preprocessing | None) -> Header:
        """What a checkpoint of davit says about this model."""
        name = CLASSIFIER if isinstance(self, DaViTForImageClassification) else MODEL
        return to_header({**self.config.to_dict(), "architectures": [name]}, preprocessing)

    def _card(self, here: str | None = None, tags: Sequence[str] = ()) -> str:
        return model_card(self.header(None), self.num_parameters(), here=here, tags=tags)


class DaViTModel(DaViTPreTrainedModel):
    """The backbone, and the mean of its last map over positions, normed where `config.pooled_norm` says so."""

    _keys_to_ignore_on_load_unexpected = [r"^head\."]  # noqa: RUF012 (as transformers has it)

    def __init__(self, config: DaViTPretrainedConfig) -> None:
        """Build with fresh weights."""
        super().__init__(config)
        self.backbone = DaViT(config.architecture)
        width = self.backbone.channels[-1]
        self.norm = nn.LayerNorm(width, eps=NORM_EPS) if config.pooled_norm else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """Compute the features of images.

        Args:
            pixel_values: images as the image processor makes them, (B, in_channels, H, W).
            output_hidden_states: all four maps, too.

        Returns:
            `last_hidden_state`, the last map (B, C, H, W); `pooler_output` (B, C); `hidden_states`.
        """
        maps = self._maps(pixel_values)
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=maps[-1],  # type: ignore[bad-argument-type]
            pooler_output=self.norm(maps[-1].mean((2, 3))),
            hidden_states=_asked(self, output_hidden_states, maps),  # type: ignore[bad-argument-type]
        )


class DaViTForImageClassification(DaViTPreTrainedModel):
    """Our classifier: pool, norm, linear."""

    def __init__(self, config: DaViTPretrainedConfig) -> None:
        """Build with fresh weights."""
        config.pooled_norm = True
        super().__init__(config)
        self.num_labels = config.num_labels
        ours = Classifier(ClassifierConfig(backbone=config.architecture, num_classes=config.num_labels or 0))
        self.backbone, self.norm, self.head = ours.backbone, ours.norm, ours.head
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> ImageClassifierOutputWithNoAttention:
        """Classify images.

        Args:
            pixel_values: images as the image processor makes them, (B, in_channels, H, W).
            labels: classes (B,); or, as `config.problem_type` says, flags or numbers (B, num_labels).
            output_hidden_states: the four maps of the backbone, too.

        Returns:
            `loss` where labels are given, `logits` (B, num_labels), `hidden_states`.
        """
        maps = self._maps(pixel_values)
        logits = self.head(self.norm(maps[-1].mean((2, 3))))
        return ImageClassifierOutputWithNoAttention(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=_asked(self, output_hidden_states, maps),  # type: ignore[bad-argument-type]
        )


class DaViTBackbone(BackboneMixin, DaViTPreTrainedModel):
    """The backbone for the detectors and segmenters of transformers: maps at strides 4, 8, 16 and 32."""

    has_attentions = False
    _keys_to_ignore_on_load_unexpected = [r"^head\.", r"^norm\."]  # noqa: RUF012 (as transformers has it)

    def __init__(self, config: DaViTPretrainedConfig) -> None:
        """Build with fresh weights."""
        config.pooled_norm = False
        super().__init__(config)
        self.backbone = DaViT(config.architecture)
        self.num_features = list(self.backbone.channels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BackboneOutput:
        """Compute the maps named by `out_features`.

        Args:
            pixel_values: images as the image processor makes them, (B, in_channels, H, W); any H and W.
            output_hidden_states: all four maps as `hidden_states`, too.
            output_attentions: not supported.

        Returns:
            `feature_maps`, (B, C, ceil(H / stride), ceil(W / stride)) each; `hidden_states`.

        Raises:
            ValueError: attentions are asked for.
        """
        if output_attentions:
            raise ValueError("DaViT returns no attentions here; davit.explain has those of both kinds")
        maps = self._maps(pixel_values)
        chosen = [x for stage, x in zip(STAGES, maps, strict=True) if stage in self.out_features]
        hidden = _asked(self, output_hidden_states, maps)
        return BackboneOutput(feature_maps=tuple(chosen), hidden_states=hidden)  # type: ignore[bad-argument-type]


def _asked(model: DaViTPreTrainedModel, asked: bool | None, maps: list[Tensor]) -> tuple[Tensor, ...] | None:
    asked = model.config.output_hidden_states if asked is None else asked
    return tuple(maps) if asked else None
