"""The records of metrics.jsonl as TensorBoard events."""

import time
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


class Board:
    """Writes scalars into `tensorboard/` of a run folder; `tensorboard --logdir runs` shows all runs below `runs`."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        """Begin, or go on after `first_step`: what an earlier session wrote of later steps is no longer shown.

        Raises:
            ValueError: tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "runtime.tensorboard needs the package tensorboard: pip install 'davit[tensorboard]', "
                "or set runtime.tensorboard=false; metrics.jsonl holds the same numbers"
            ) from error
        self._writer = SummaryWriter(str(folder / FOLDER), purge_step=first_step + 1)

    def record(self, values: dict[str, Any]) -> None:
        """Write the numbers of a record at its `step`, and give them to readers at once."""
        step, now = values["step"], time.time()
        for key, value in values.items():
            if key != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(key, value, step, walltime=now)
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        self._writer.close()
