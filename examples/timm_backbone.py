"""DaViT under a name of timm's, so that whatever asks timm for a backbone gets it.

timm has DaViTs of its own under other names; `davit convert --to timm` writes weights for those. This is for the rest:
the small variants, other windows and orders of attention, our checkpoints.

    python examples/timm_backbone.py
"""

from collections.abc import Sequence

import timm
import torch
from timm.models import FeatureInfo, register_model
from torch import Tensor, nn

import davit


class TimmFeatures(nn.Module):
    """What `features_only=True` asks for: a list of maps, and `feature_info` about them."""

    def __init__(self, backbone: nn.Module, out_indices: Sequence[int]) -> None:
        """Choose some of the four maps of a backbone."""
        super().__init__()
        self.backbone = backbone
        about = [
            {"num_chs": channels, "reduction": stride, "module": f"backbone.stages.{stage}"}
            for stage, (channels, stride) in enumerate(zip(backbone.channels, backbone.strides, strict=True))
        ]
        self.feature_info = FeatureInfo(about, tuple(out_indices))

    def forward(self, images: Tensor) -> list[Tensor]:  # (B, in_chans, H, W)
        """Return the maps, (B, C, ceil(H / stride), ceil(W / stride))."""
        maps = self.backbone(images)
        return [maps[index] for index in self.feature_info.out_indices]


@register_model
def davit_pico(
    pretrained: bool = False,
    features_only: bool = False,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    in_chans: int = 3,
    num_classes: int = 1000,
    **about_weights: object,  # timm's pretrained_cfg and so on
) -> nn.Module:
    """Build for `timm.create_model("davit_pico")`; for trained weights put `davit.load(...)` here."""
    if features_only:
        return TimmFeatures(davit.create_backbone("davit_pico", in_chans), out_indices)
    return davit.create_model("davit_pico", num_classes, in_chans)


def main() -> None:
    """Take features where a timm backbone is expected."""
    features = timm.create_model("davit_pico", features_only=True, out_indices=(1, 2, 3))
    maps = features(torch.randn(1, 3, 97, 131))
    for channels, stride, x in zip(
        features.feature_info.channels(), features.feature_info.reduction(), maps, strict=True
    ):
        print(f"stride {stride:2d}, {channels:3d} channels: {tuple(x.shape)}")


if __name__ == "__main__":
    main()
