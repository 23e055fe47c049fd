"""An image-text model that knows three colours, learnt in a few seconds."""

from pathlib import Path

import torch
from PIL import Image

from davit.data.folder import ClassFolder
from davit.models.clip import ImageTextModel
from davit.models.clip_config import ImageTextConfig, ImageTextHead, TextConfig
from davit.preprocessing import Preprocessing
from davit.seeding import seed_everything
from davit.tasks.contrastive import unicl_loss
from davit.tokens import tokenize
from davit.weights.save import save
from runs import TINY

COLOURS = ("blue", "green", "red")
HEAD = ImageTextHead(embedding=16, text=TextConfig(context=12, width=32, heads=2, layers=1), template="a {} picture")


def fresh(seed: int = 0) -> ImageTextModel:
    seed_everything(seed)
    model = ImageTextModel(ImageTextConfig(backbone=TINY.override(in_channels=3, drop_path=0.0), head=HEAD))
    model.preprocessing = Preprocessing.imagenet(24, crop=1.0)
    return model.eval()


def taught(folder: Path) -> ImageTextModel:
    """Taught by captions of the pictures of `runs.colour_folder`."""
    model = fresh()
    assert model.preprocessing is not None
    data = ClassFolder(folder)
    pixels = torch.stack([model.preprocessing(data[i][0]) for i in range(len(data))])
    labels = torch.tensor(data.labels)
    tokens = tokenize([f"a {data.classes[label]} picture" for label in data.labels], HEAD.text.context)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(30):
        out = model.train()(pixels, tokens)
        assert out.texts is not None
        loss = unicl_loss(out.images, out.texts, out.scale, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def saved(model: ImageTextModel, path: Path) -> str:
    save(model, path)
    return str(path)


def plain_picture(path: Path, colour: tuple[int, int, int]) -> Path:
    Image.new("RGB", (30, 20), colour).save(path)
    return path
