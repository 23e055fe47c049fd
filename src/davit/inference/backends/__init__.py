"""What computes a forward pass: a file each."""

from typing import Literal

BackendName = Literal["auto", "native", "eager"]  # what `make_backend` makes
