"""Models as graphs of free batch and image size, which exporters take."""

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from davit.models.davit import DaViT
from davit.models.dense import DenseBackbone
from davit.models.detector import Detector
from davit.models.upernet import Segmenter
from davit.weights.load import LoadedModel
from davit.weights.save import header_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# Pads windows, merges and detectors alike, and leaves more than one position at stride 128: torch.export takes a
# dimension that is one for one at every size.
TRACED_SIZE = (321, 610)


class Logits(nn.Module):
    """A segmenter without what only training uses."""

    def __init__(self, model: Segmenter) -> None:
        """Wrap a segmenter."""
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W)
        """Return logits alone."""
        return self.model(images).logits


def traced_images(model: LoadedModel) -> Tensor:
    """Images to trace a model with."""
    return torch.zeros(2, header_of(model, {}).backbone.in_channels, *TRACED_SIZE)


def plain_graph(model: LoadedModel) -> tuple[nn.Module, list[str]]:
    """What is traced of a model that finds no objects, and the names of its outputs."""
    assert not isinstance(model, Detector)
    if isinstance(model, Segmenter):
        return Logits(model), ["logits"]
    if isinstance(model, (DaViT, DenseBackbone)):
        return model, [f"map{stride}" for stride in model.strides]
    return model, ["logits"]


def trace(model: LoadedModel) -> "ExportedProgram":
    """The graph of a classifier, backbone or segmenter by `torch.export`.

    Its guards ask for images of 33 pixels and batches of two, for smaller ones were not seen; nothing in it depends on
    that, and who compiles it leaves them out.
    """
    from torch.export import Dim, export

    graph, _ = plain_graph(model)
    free = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about itself
        return export(graph.eval(), (traced_images(model),), dynamic_shapes=(free,), strict=False)
