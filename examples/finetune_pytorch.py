"""Fine-tune on a folder of class folders with a loop of your own.

    python examples/finetune_pytorch.py photos/train davit_tiny.msft_in1k mine.safetensors

`davit train finetune data.root=photos model.init=davit_tiny.msft_in1k` does the same with augmentation, layer decay,
averaged weights, resume and a report. This is for what wants its own loop.
"""

import sys

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import davit
from davit.decoding import read_image
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig


def with_new_head(source: str, classes: tuple[str, ...]) -> Classifier:
    """A classifier of other classes on trained weights."""
    trained = davit.load(source)
    model = Classifier(ClassifierConfig(backbone=trained.config.backbone, num_classes=len(classes)))
    model.backbone.load_state_dict(trained.backbone.state_dict())
    model.norm.load_state_dict(trained.norm.state_dict())
    model.preprocessing, model.classes = trained.preprocessing, classes
    return model


def main(folder: str, source: str, out: str, epochs: int = 5, batch_size: int = 16) -> list[float]:
    """Train, save, and return the mean loss of each epoch."""
    torch.manual_seed(0)
    data = ImageFolder(folder, loader=read_image)
    model = with_new_head(source, tuple(data.classes)).train()
    data.transform = model.preprocessing  # the pixels that prediction will see
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    losses = []
    for epoch in range(epochs):
        total = 0.0
        for images, labels in DataLoader(data, batch_size, shuffle=True):
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        losses.append(total / len(data))
        print(f"epoch {epoch + 1}: loss {losses[-1]:.4f}")
    davit.save(model.cpu().eval(), out, provenance={"source": source, "data": folder})
    print(f"saved {out}: davit predict --model {out} PICTURE...")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:4])
