"""Maps into windows and back.

Shapes: B images, H x W positions, C channels, P = window side. Windows are counted row by row, image after image.

Each direction has two forms with the same result. The plain one is views and a copy. `torch.export` of free sizes takes
the other, one gather by computed indices: a view gives the number of window rows a dimension of its own, and the
exporter then refuses every size at which that number is one (224 pixels in the last stage, for instance).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def partition_windows(x: Tensor, window: int) -> Tensor:
    """Split (B, H, W, C) into (B * windows, P * P, C), zero-padded on the right and bottom."""
    if torch.compiler.is_exporting():
        return _gather_windows(x, window)
    _, H, W, C = x.shape
    if H % window or W % window:
        x = F.pad(x, (0, 0, 0, -W % window, 0, -H % window))
    x = x.unflatten(1, (-1, window)).unflatten(3, (-1, window))  # (B, rows, P, columns, P, C)
    return x.transpose(2, 3).reshape(-1, window * window, C)


def merge_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Invert `partition_windows` for maps of height x width positions: (B, height, width, C), the padding cropped."""
    if torch.compiler.is_exporting():
        return _gather_map(windows, window, height, width)
    rows, columns = count_windows(height, window), count_windows(width, window)
    x = windows.view(-1, rows, columns, window, window, windows.shape[-1]).transpose(2, 3)
    x = x.reshape(-1, rows * window, columns * window, windows.shape[-1])
    if height % window or width % window:  # even a slice of everything costs a pass over the map when it is learnt
        x = x[:, :height, :width]
    return x


def count_windows(size: int, window: int) -> int:
    """How many windows cover `size` positions, the last one perhaps in part."""
    return (size - 1) // window + 1


def _gather_windows(x: Tensor, window: int) -> Tensor:
    B, H, W, _ = x.shape
    rows, columns, area = count_windows(H, window), count_windows(W, window), window * window
    token = torch.arange(B * rows * columns * area, device=x.device)
    row = token // (area * columns) % rows * window + token // window % window
    column = token // area % columns * window + token % window
    inside = (row < H) & (column < W)
    source = ((token // (area * columns * rows) * H + row) * W + column).where(inside, 0)
    tokens = x.flatten(0, 2).index_select(0, source).where(inside.unsqueeze(1), 0)
    return tokens.unflatten(0, (B * rows * columns, area))


def _gather_map(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    rows, columns, area = count_windows(height, window), count_windows(width, window), window * window
    B = windows.shape[0] // (rows * columns)
    position = torch.arange(B * height * width, device=windows.device)
    image, row, column = position // (height * width), position // width % height, position % width
    which = (image * rows + row // window) * columns + column // window
    source = which * area + row % window * window + column % window
    return windows.flatten(0, 1).index_select(0, source).unflatten(0, (B, height, width))
