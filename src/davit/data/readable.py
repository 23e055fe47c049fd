"""Which pictures of a dense task can be read with what is known about them: asked before a score is counted."""

from torch.utils.data import DataLoader, Dataset

from davit.data.evaluation_loader import SizedImages
from davit.data.loader import WORKER_TIMEOUT
from davit.decoding import ImageError


def readable(images: SizedImages, workers: int) -> tuple[list[int], list[str]]:
    """Return the places of the pictures that can be read, and why the others cannot.

    Every picture is decoded, once more than scoring it needs.

    Args:
        images: what to look at.
        workers: processes that decode; 0 does it in this one.
    """
    faults = list(
        DataLoader(_Faults(images), batch_size=None, num_workers=workers, timeout=WORKER_TIMEOUT if workers else 0)
    )
    return [index for index, fault in enumerate(faults) if not fault], [fault for fault in faults if fault]


class _Faults(Dataset[str]):
    """Why each picture cannot be read; empty where it can."""

    def __init__(self, images: SizedImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> str:
        try:
            self.images.size(index)
            self.images[index]
        except ImageError as error:
            return str(error)
        except ValueError:  # annotations that mean nothing are no missing picture: scoring stops at them
            return ""
        return ""
