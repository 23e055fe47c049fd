"""DaViT with a feature pyramid under torchvision's Faster R-CNN, trained for some steps on made-up boxes.

davit has Mask R-CNN and RetinaNet of its own (docs/detection-and-segmentation.md); this is for what builds on
torchvision's.

    python examples/torchvision_detector.py
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

import davit


class BackboneWithPyramid(nn.Module):
    """What torchvision's detectors take: named maps of one width, which `out_channels` says."""

    def __init__(self, body: nn.Module, out_channels: int = 256) -> None:
        """Put a pyramid on the four maps of a backbone of ours."""
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(list(body.channels), out_channels, LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # (B, 3, H, W)
        """Return maps at strides 4, 8, 16, 32 and 64."""
        return self.fpn(OrderedDict((str(level), x) for level, x in enumerate(self.body(images))))


def make_detector(backbone: nn.Module, num_classes: int, size: int = 800, width: int = 256) -> FasterRCNN:
    """Build a detector; the background counts as class 0.

    Images go in as tensors of 0-1 and of any size: torchvision resizes them to a short side of `size`, normalises them
    with ImageNet's mean and deviation, and pads the batch to multiples of 32. The pyramid's maps have `width` channels.
    """
    anchors = AnchorGenerator(tuple((side,) for side in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5)
    body = BackboneWithPyramid(backbone, width)
    return FasterRCNN(body, num_classes, min_size=size, max_size=2 * size, rpn_anchor_generator=anchors)


def train(detector: FasterRCNN, steps: int = 20) -> list[float]:
    """Learn where white squares are; returns the losses."""
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-4, weight_decay=0.05)
    losses = []
    for step in range(steps):
        top, left = torch.randint(0, 40, (2,), generator=torch.Generator().manual_seed(step)).tolist()
        image = torch.zeros(3, 97, 131)
        image[:, top : top + 40, left : left + 40] = 1.0
        target = {"boxes": torch.tensor([[left, top, left + 40.0, top + 40.0]]), "labels": torch.tensor([1])}
        loss = sum(detector.train()([image], [target]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Train, and look for a square."""
    torch.manual_seed(0)
    detector = make_detector(davit.create_backbone("davit_pico"), num_classes=2, size=128, width=64)
    losses = train(detector)
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
    found = detector.eval()([torch.zeros(3, 97, 131)])[0]
    print(f"boxes {tuple(found['boxes'].shape)}, scores {tuple(found['scores'].shape)}")


if __name__ == "__main__":
    main()
