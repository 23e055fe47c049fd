"""Randomness as a pure function of integers, so that a resumed run draws what the interrupted one would have drawn."""

import random


def seed_everything(*keys: int) -> None:
    """Seed Python, NumPy and torch from `keys`, such as (seed, epoch, index) or (seed, step)."""
    import numpy as np
    import torch

    state = np.random.SeedSequence(keys).generate_state(2, np.uint64)
    random.seed(int(state[0]))
    np.random.seed(int(state[0]) % 2**32)  # noqa: NPY002 - timm's augmentations draw from the global generator
    seed = int(state[1]) % 2**63
    torch.default_generator.manual_seed(seed)  # torch.manual_seed asks every accelerator, half a millisecond a sample
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
