"""Weights on disk: our checkpoint file, other people's formats, and the catalogue of public weights."""
