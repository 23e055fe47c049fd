"""Fine-tune on a folder of class folders with the Trainer of transformers.

Needs: pip install 'davit[hf]' accelerate

    python examples/finetune_trainer.py photos/train davit_tiny.msft_in1k out

`out` is then a folder for `pipeline`, `push_to_hub` and `davit predict --model out`.
"""

import sys
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from transformers import Trainer, TrainingArguments

import davit.huggingface
from davit.decoding import read_image
from davit.huggingface import DaViTForImageClassification, DaViTImageProcessor, DaViTModel, DaViTPretrainedConfig


class Pictures(Dataset[dict[str, Any]]):
    """What the Trainer takes of a folder of class folders."""

    def __init__(self, folder: str, processor: DaViTImageProcessor) -> None:
        """Prepare pictures as the processor says."""
        self.files = ImageFolder(folder, loader=read_image)
        self.processor = processor

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        """One picture and its class."""
        picture, label = self.files[index]
        return {"pixel_values": self.processor(picture, return_tensors="pt").pixel_values[0], "labels": label}


def with_new_head(source: str, classes: list[str]) -> tuple[DaViTForImageClassification, DaViTImageProcessor]:
    """A classifier of other classes on trained weights of ours; a folder of transformers goes to `from_pretrained`."""
    trained, processor = davit.huggingface.from_davit(source, DaViTModel)
    names = dict(enumerate(classes))
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    model = DaViTForImageClassification(DaViTPretrainedConfig(**{**trained.config.to_dict(), **labels}))
    model.load_state_dict(trained.state_dict(), strict=False)  # all but the head
    return model, processor


def main(folder: str, source: str, out: str, epochs: int = 5, batch_size: int = 16) -> Trainer:
    """Train and save."""
    model, processor = with_new_head(source, ImageFolder(folder).classes)
    settings = TrainingArguments(
        output_dir=out,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=1e-4,
        weight_decay=0.05,
        save_strategy="no",
        report_to="none",
        seed=0,
    )
    trainer = Trainer(model=model, args=settings, train_dataset=Pictures(folder, processor), processing_class=processor)
    trainer.train()
    trainer.save_model(out)  # and the processor with it
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:4])
