"""Settings for all tests: few threads, no network (see pyproject), fresh seeds."""

import pytest
import torch

from davit.models.config import DaViTConfig


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)


@pytest.fixture
def small_config() -> DaViTConfig:
    """A backbone of 0.7 M parameters with four different widths and a window that pads."""
    return DaViTConfig(widths=(32, 64, 96, 128), depths=(1, 1, 2, 1))
