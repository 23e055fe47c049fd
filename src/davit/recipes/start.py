"""What a recipe is told before it is built."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Start:
    """Settings that other settings follow from; none keeps the recipe's own.

    Attributes:
        variant: name of the architecture: its fields follow.
        init: what the weights start from, empty for fresh ones: how gently they are treated follows.
        batch_size: images per step: the learning rate may follow.
    """

    variant: str | None = None
    init: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse steps without images."""
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, got {self.batch_size}")
