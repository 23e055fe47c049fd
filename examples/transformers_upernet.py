"""DaViT under transformers' UperNetForSemanticSegmentation, for some steps on made-up maps.

Any model of transformers that takes a `backbone_config` takes it in this way. Needs: pip install 'davit[hf]'

    python examples/transformers_upernet.py
"""

from pathlib import Path

import torch
from transformers import UperNetConfig, UperNetForSemanticSegmentation

import davit
import davit.huggingface


def make_segmenter(source: torch.nn.Module | str | Path, num_labels: int, width: int = 512) -> torch.nn.Module:
    """Put transformers' UperNet on a backbone.

    Args:
        source: what `davit.huggingface.from_davit` takes: a model of ours, a file, a name of `davit models`.
        num_labels: classes of a position.
        width: channels of the head.
    """
    davit.huggingface.register()  # so that the config makes a DaViTBackbone
    backbone = davit.huggingface.from_davit(source, davit.huggingface.DaViTBackbone).model
    config = UperNetConfig(
        backbone_config=backbone.config,
        hidden_size=width,
        num_labels=num_labels,
        auxiliary_in_channels=backbone.channels[2],
        auxiliary_channels=width // 2,
    )
    model = UperNetForSemanticSegmentation(config)
    model.backbone.load_state_dict(backbone.state_dict())
    return model


def main() -> None:
    """Learn that the left half is class 1."""
    torch.manual_seed(0)
    model = make_segmenter(davit.create_backbone("davit_pico"), num_labels=2, width=64).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images, labels = torch.randn(2, 3, 97, 131), torch.zeros(2, 97, 131, dtype=torch.long)
    images[..., :65] += 2
    labels[..., :65] = 1
    for step in range(10):
        output = model(pixel_values=images, labels=labels)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        if step in (0, 9):
            right = (output.logits.argmax(1) == labels).float().mean()
            print(f"step {step}: loss {output.loss:.3f}, {right:.0%} of positions right")


if __name__ == "__main__":
    main()
