"""The readable reference models, in plain PyTorch."""
