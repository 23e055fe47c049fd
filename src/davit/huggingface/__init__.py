"""DaViT as a model of Hugging Face's transformers; needs the extra `hf`.

The names load on first use, so that importing this costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from davit.huggingface.configuration import DaViTPretrainedConfig as DaViTPretrainedConfig
    from davit.huggingface.conversion import from_davit as from_davit
    from davit.huggingface.conversion import to_davit as to_davit
    from davit.huggingface.image_processor import DaViTImageProcessor as DaViTImageProcessor
    from davit.huggingface.models import DaViTBackbone as DaViTBackbone
    from davit.huggingface.models import DaViTForImageClassification as DaViTForImageClassification
    from davit.huggingface.models import DaViTModel as DaViTModel
    from davit.huggingface.registration import register as register

_HOMES = {
    "DaViTBackbone": "models",
    "DaViTForImageClassification": "models",
    "DaViTImageProcessor": "image_processor",
    "DaViTModel": "models",
    "DaViTPretrainedConfig": "configuration",
    "from_davit": "conversion",
    "register": "registration",
    "to_davit": "conversion",
}

__all__ = [
    "DaViTBackbone",
    "DaViTForImageClassification",
    "DaViTImageProcessor",
    "DaViTModel",
    "DaViTPretrainedConfig",
    "from_davit",
    "register",
    "to_davit",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'davit.huggingface' has no attribute {name!r}")
    try:
        return getattr(import_module(f"davit.huggingface.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError("davit.huggingface needs the package of the extra hf: pip install 'davit[hf]'") from error


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
