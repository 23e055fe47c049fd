"""The architecture as transformers keeps it."""

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from davit.models.config import DaViTConfig
from davit.records import from_json, to_json
from davit.weights.convert.huggingface import MODEL_TYPE, auto_map
from davit.weights.huggingface_folder import write_code

STAGES = ("stage1", "stage2", "stage3", "stage4")


class DaViTPretrainedConfig(BackboneConfigMixin, PreTrainedConfig):
    """Every field of `DaViTConfig` under its own name, and what transformers adds.

    `DaViTPretrainedConfig(widths=(32, 64, 128, 256), num_labels=10)` takes its defaults from `DaViTConfig`;
    `num_channels` is another name of `in_channels`.

    Attributes:
        pooled_norm: `DaViTModel` norms its pooled features, as the part of a classifier under its head does.
        provenance: where the weights come from, where known.
    """

    model_type = MODEL_TYPE
    attribute_map = {"num_channels": "in_channels"}  # noqa: RUF012 (as transformers has it)

    pooled_norm: bool = True
    provenance: dict[str, Any] | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Take the fields of `DaViTConfig` out of what was given.

        Raises:
            ValueError: an architecture that cannot be built, or feature maps that there are not.
        """
        kwargs = {self.attribute_map.get(name, name): value for name, value in kwargs.items()}
        given = {field.name: kwargs.pop(field.name) for field in fields(DaViTConfig) if field.name in kwargs}
        for name, value in to_json(DaViTConfig().override(**given)).items():
            setattr(self, name, value)
        self.stage_names = list(STAGES)
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        if out_features is None and out_indices is None:
            out_features = list(STAGES)
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)
        self.auto_map = kwargs.pop("auto_map", None) or auto_map()
        super().__post_init__(**kwargs)

    @property
    def architecture(self) -> DaViTConfig:
        """The backbone.

        Raises:
            ValueError: an attribute was set to what cannot be built.
        """
        known = {field.name: getattr(self, field.name, field.default) for field in fields(DaViTConfig)}
        return from_json(DaViTConfig, known)

    @property
    def hidden_size(self) -> int:
        """Channels of the last map and of the pooled features."""
        return self.architecture.widths[-1]

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Do nothing: every saved folder says where its classes are."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save as transformers does, with the file that loads davit where `trust_remote_code` is given."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_code(folder)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
