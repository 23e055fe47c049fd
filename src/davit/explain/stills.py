"""Explanations of one picture as PNG files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from davit.atomic import atomic_write
from davit.explain import drawing
from davit.explain.attention_maps import BlockChannels, BlockWindows
from davit.explain.contact_sheet import fitting
from davit.explain.explained import Cam, Explained
from davit.explain.payload import channel_maps
from davit.models.config import STRIDES

SIDE = 448  # pixels that small pictures are enlarged to
CELL = 224  # of a sheet
TOKEN = 56
LINE, GAP = 22, 6
GROUND, INK = "#ffffff", "#1a1a1a"


@dataclass(frozen=True, kw_only=True)
class Stills:
    """What is drawn into files.

    Attributes:
        head: of each window attention, from 1; None for the mean.
        group: of each channel attention, from 1.
        stage: whose map Grad-CAM is drawn at; None for the one that suits the answer.
    """

    head: int | None = None
    group: int = 1
    stage: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for name in ("head", "group"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ValueError(f"{name}s are counted from 1, got {number}")
        if self.stage is not None and not 0 <= self.stage < len(STRIDES):
            raise ValueError(f"there are maps of the stages 1 to {len(STRIDES)}, and none of stage {self.stage + 1}")

    def check(self, widths: Sequence[int], head_width: int) -> None:
        """Refuse a head or group that no block of these widths has; blocks with fewer are left out.

        Raises:
            ValueError: which, and how many there are.
        """
        most = max(widths) // head_width
        for name in ("head", "group"):
            if (getattr(self, name) or 1) > most:
                raise ValueError(f"the blocks shown have up to {most} {name}s, and no {name} {getattr(self, name)}")


def write_stills(sample: Explained, stills: Stills, folder: Path, names: Sequence[str]) -> list[Path]:
    """Draw an explained picture into a folder, which is made.

    Args:
        sample: the picture.
        stills: what to draw.
        folder: where to.
        names: of the points, in the files' names.

    Raises:
        OSError: a file cannot be written.
    """
    drawn: dict[str, Image.Image] = {"picture": sample.image}
    for number, cam in enumerate(sample.cams, 1):
        drawn[f"grad_cam_{number}"] = _cam(sample, cam, cam.target.stage if stills.stage is None else stills.stage)
        if cam.occlusion is not None:
            drawn[f"occlusion_{number}"] = _over(sample, cam.occlusion.clamp_min(0), cam.cell, smooth=True)
    if sample.cams:
        drawn["grad_cam_maps"] = _cam_sheet(sample)
    if sample.rollout:
        drawn["rollout_mean"] = _rolled(sample, sample.rollout.mean)
    for name, point, tile in zip(names, sample.points, sample.rollout.at if sample.rollout else (), strict=False):
        drawn[f"rollout_at_{name}"] = _asking(sample, _rolled(sample, tile), point, STRIDES[-1])
    for block in sample.record.windows:
        if stills.head is not None and stills.head > block.num_heads:
            continue
        for name, point in zip(names, sample.points, strict=True):
            drawn[f"window_stage{block.stage + 1}_block{block.block + 1}_at_{name}"] = draw_window(
                sample, block, point, stills.head
            )
    for channels in sample.record.channels:
        if stills.group > len(channels.affinity):
            continue
        name = f"channels_stage{channels.stage + 1}_block{channels.block + 1}_group{stills.group}"
        drawn[name] = draw_channels(channels, stills.group)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, image in drawn.items():
        written.append(folder / f"{name}.png")
        with atomic_write(written[-1]) as file:
            file.write(drawing.png_bytes(image))
    return written


def draw_window(
    sample: Explained, block: BlockWindows, point: tuple[float, float], head: int | None = None
) -> Image.Image:
    """The attention of the position under a point, over the picture, its window and itself outlined."""
    seen = block.at_pixel(*point)
    drawn = _over(sample, seen.mean if head is None else seen.heads[head - 1], block.stride)
    top, left, bottom, right = (edge * block.stride * _scale(sample) for edge in seen.window)
    drawn = drawing.mark(drawn, (left, top, min(right, drawn.width), min(bottom, drawn.height)), "#b9b4c2")
    return _asking(sample, drawn, point, block.stride)


def draw_channels(block: BlockChannels, group: int = 1) -> Image.Image:
    """The affinity of a group, and each of its channels: its own map above what the attention makes of it."""
    affinity = block.affinity[group - 1]
    chosen = block.energetic(group - 1, len(affinity))
    matrix = drawing.heat(drawing.unit(affinity)).resize((8 * len(affinity),) * 2, Image.Resampling.NEAREST)
    maps = channel_maps(block, group - 1, chosen)
    cells = [
        _titled(drawing.contact_sheet([_token(tile) for tile in pair], 1, gap=2, ground=GROUND), str(channel), 14)
        for channel, pair in zip(chosen, maps.unbind(1), strict=True)
    ]
    sheet = drawing.contact_sheet(cells, 16, gap=GAP, ground=GROUND)
    title = f"stage {block.stage + 1}, block {block.block + 1}, group {group}: affinity; below, each channel's own map "
    title += "above what the attention makes of it, the most energetic first"
    return _titled(_stacked(matrix, sheet), title)


def _cam(sample: Explained, cam: Cam, stage: int) -> Image.Image:
    drawn = _over(sample, cam.maps[stage], STRIDES[stage], smooth=True)
    if not cam.target.box:
        return drawn
    left, top, right, bottom = (round(edge * _scale(sample)) for edge in cam.target.box)
    return drawing.mark(drawn, (left, top, right, bottom))


def _cam_sheet(sample: Explained) -> Image.Image:
    """A row for each number of the answer, a column for each map."""
    cells: list[Image.Image] = []
    for cam in sample.cams:
        for stage in range(len(STRIDES)):
            title = f"{cam.target.label} {cam.target.score:.3f}" if not stage else f"stage {stage + 1}"
            cells.append(_titled(drawing.fit(_cam(sample, cam, stage), CELL), title))
    return drawing.contact_sheet(cells, len(STRIDES), gap=GAP, ground=GROUND)


def _over(sample: Explained, values: Tensor, stride: int, *, smooth: bool = False) -> Image.Image:
    return drawing.overlay(sample.image, drawing.unit(values), stride, smooth=smooth, scale=_scale(sample))


def _rolled(sample: Explained, shares: Tensor) -> Image.Image:
    return drawing.overlay(sample.image, drawing.stretched(shares), STRIDES[0], scale=_scale(sample))


def _asking(sample: Explained, drawn: Image.Image, point: tuple[float, float], stride: int) -> Image.Image:
    """Outline the position of a map that a point lies in."""
    unit = stride * _scale(sample)
    row, column = int(point[0]) // stride, int(point[1]) // stride
    box = (column * unit, row * unit, min((column + 1) * unit, drawn.width), min((row + 1) * unit, drawn.height))
    return drawing.mark(drawn, box)


def _scale(sample: Explained) -> int:
    return max(1, SIDE // max(sample.image.size))


def _token(tile: Tensor) -> Image.Image:
    return drawing.enlarge(drawing.heat(tile), TOKEN)


def _stacked(above: Image.Image, below: Image.Image) -> Image.Image:
    size = (max(above.width, below.width), above.height + 3 * GAP + below.height)
    sheet = Image.new("RGB", size, GROUND)
    sheet.paste(above, (0, 0))
    sheet.paste(below, (0, above.height + 3 * GAP))
    return sheet


def _titled(image: Image.Image, title: str, size: int = 13) -> Image.Image:
    sheet = Image.new("RGB", (image.width, image.height + LINE), GROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size)
    draw.text((2, 3), fitting(draw, font, title, image.width - 4), INK, font)
    sheet.paste(image.convert("RGB"), (0, LINE))
    return sheet
