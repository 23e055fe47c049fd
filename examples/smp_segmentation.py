"""DaViT as an encoder of segmentation_models_pytorch: Unet, FPN and UPerNet over it.

Needs: pip install segmentation-models-pytorch

    python examples/smp_segmentation.py
"""

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders import encoders
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn

import davit


class DaViTEncoder(nn.Module, EncoderMixin):
    """The image, nothing at stride 2, and the maps of a DaViT at strides 4 to 32."""

    def __init__(self, variant: str, depth: int = 5, output_stride: int = 32) -> None:
        """Build with fresh weights; see `main` for trained ones.

        Raises:
            ValueError: fewer than all four stages, or another output stride than 32.
        """
        if depth != 5 or output_stride != 32:
            raise ValueError(f"DaViT has depth 5 and output stride 32, got {depth} and {output_stride}")
        super().__init__()
        self.backbone = davit.create_backbone(variant)
        self._in_channels, self._depth, self._output_stride = 3, depth, output_stride
        self._out_channels = [3, 0, *self.backbone.channels]

    def forward(self, images: Tensor) -> list[Tensor]:  # (B, C, H, W)
        """Return six maps, each half as wide as the one before; the second has no channels."""
        B, _, H, W = images.shape
        return [images, images.new_empty(B, 0, H // 2, W // 2), *self.backbone(images)]


def register(variant: str) -> None:
    """Let `smp.Unet(variant)` and so on take a variant of `davit.list_models()`."""
    encoders[variant] = {"encoder": DaViTEncoder, "pretrained_settings": {}, "params": {"variant": variant}}


def main() -> None:
    """Segment with three decoders; sides must be multiples of 32, except for UPerNet's like."""
    register("davit_pico")
    trained = davit.create_backbone("davit_pico")  # or davit.load("davit_tiny.msft_in1k").backbone
    for kind in (smp.Unet, smp.FPN, smp.UPerNet):
        model = kind("davit_pico", encoder_weights=None, classes=5)
        model.encoder.backbone.load_state_dict(trained.state_dict())
        with torch.no_grad():
            print(f"{kind.__name__}: {tuple(model.eval()(torch.randn(1, 3, 96, 160)).shape)}")


if __name__ == "__main__":
    main()
