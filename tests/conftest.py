"""Settings for all tests: one thread each, for `make test` runs several at once; no network (see pyproject); seeds."""

import os
import random
from pathlib import Path

import pytest
import torch

from davit.data.shard_writer import write_shards
from davit.models.config import DaViTConfig
from odd_pictures import encode, scene
from runs import colour_folder

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def small_config() -> DaViTConfig:
    """A backbone of 0.7 M parameters with four different widths and a window that pads."""
    return DaViTConfig(widths=(32, 64, 96, 128), depths=(1, 1, 2, 1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes with the file names that break formats; the last image of red is a JPEG in a deeper folder."""
    colour_folder(tmp_path / "data" / "train")
    colour_folder(tmp_path / "data" / "val", images=2)
    red = tmp_path / "data" / "train" / "red"
    (red / "deep").mkdir()
    (red / "deep" / "IMG.01.x.JPEG").write_bytes(encode(scene(random.Random(1)), "JPEG"))
    (red / "deep" / "IMG.01_x.png").write_bytes(encode(scene(random.Random(2)), "PNG"))
    (red / ("schöne 猫" + "x" * 120 + ".png")).write_bytes(encode(scene(random.Random(3)), "PNG"))
    return tmp_path / "data"


@pytest.fixture
def shards(folder: Path) -> Path:
    out = folder.parent / "shards"
    write_shards(folder, out, 10_000)
    return out
