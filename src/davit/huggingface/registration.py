"""The Auto classes of transformers learn of DaViT."""

from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from davit.huggingface.configuration import DaViTPretrainedConfig
from davit.huggingface.image_processor import DaViTImageProcessor
from davit.huggingface.models import DaViTBackbone, DaViTForImageClassification, DaViTModel
from davit.weights.convert.huggingface import MODEL_TYPE


def register() -> None:
    """Let `AutoConfig`, `AutoModel`, `AutoBackbone`, `AutoImageProcessor`, `pipeline` and so on take DaViT folders.

    It changes transformers for this process; a second call changes nothing. Without it, pass `trust_remote_code=True`.
    """
    AutoConfig.register(MODEL_TYPE, DaViTPretrainedConfig, exist_ok=True)
    AutoModel.register(DaViTPretrainedConfig, DaViTModel, exist_ok=True)
    AutoModelForImageClassification.register(DaViTPretrainedConfig, DaViTForImageClassification, exist_ok=True)
    AutoBackbone.register(DaViTPretrainedConfig, DaViTBackbone, exist_ok=True)
    backends = dict.fromkeys(("pil", "torchvision"), DaViTImageProcessor)
    AutoImageProcessor.register(DaViTPretrainedConfig, image_processor_classes=backends, exist_ok=True)
