"""PNG files whose values are indices, not shades."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from davit.decoding import MAX_PIXELS, QUIET, ImageError, show_path
from davit.models.segmenter_config import IGNORED

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STEPS = {"L;2": 85, "L;4": 17}  # what Pillow multiplies grey values of 2 and 4 bits by


def read_mask(path: Path) -> "NDArray[np.uint8]":
    """Decode a PNG into its values as they are stored, (height, width): palette indices or grey.

    Raises:
        ImageError: it cannot be read, is no PNG, or holds colours instead of indices.
    """
    name = show_path(path)
    try:
        if not path.is_file():  # reading a pipe may never end
            raise FileNotFoundError("no such file")
        data = path.read_bytes()
        with QUIET(), _open(data) as mask:
            mask.verify()  # all checksums: Pillow's decoder skips those of the pixels
        with QUIET(), _open(data) as mask:
            step = _STEPS.get(str(mask.tile[0].args), 1)
            values = np.asarray(mask)
    except Exception as error:  # on damaged bytes Pillow raises nearly every type there is
        raise ImageError(f"{name}: is no PNG, or it is damaged, or cannot be read ({error})") from error
    if values.ndim != 2:
        raise ImageError(f"{name}: is a picture in colours, expected a mask of indices (grey or with a palette)")
    if values.max() > IGNORED:
        raise ImageError(f"{name}: has the label {values.max()}, expected 0 to 255")
    return values.astype(np.uint8) // np.uint8(step)


def _open(data: bytes) -> PngImageFile:
    mask = Image.open(BytesIO(data), formats=("PNG",))
    assert isinstance(mask, PngImageFile)
    if mask.width * mask.height > MAX_PIXELS:
        raise ValueError(f"{mask.width}x{mask.height} pixels are over the limit of {MAX_PIXELS:,}")
    return mask
