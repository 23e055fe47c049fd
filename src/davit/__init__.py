"""DaViT, the Dual Attention Vision Transformers of arXiv 2204.03645.

The public names load on first use, so that `import davit` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from davit.inference.optimize import optimize as optimize
    from davit.inference.predictor import Predictor as Predictor
    from davit.models.create import create_backbone as create_backbone
    from davit.models.create import create_model as create_model
    from davit.models.variants import list_models as list_models
    from davit.weights.load import load as load
    from davit.weights.save import save as save

__version__ = "0.1.0"

_HOMES = {
    "Predictor": "davit.inference.predictor",
    "create_backbone": "davit.models.create",
    "create_model": "davit.models.create",
    "list_models": "davit.models.variants",
    "load": "davit.weights.load",
    "optimize": "davit.inference.optimize",
    "save": "davit.weights.save",
}

__all__ = ["Predictor", "__version__", "create_backbone", "create_model", "list_models", "load", "optimize", "save"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'davit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
