"""The attention part of the report: pictures for one sample and position, and the data to show any other.

A visitor's browser only copies tiles from sprites (few-colour PNGs), so the page needs no colour code and little data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from davit.explain import drawing
from davit.explain.attention import AttentionRecord, StageChannels, StageWindows

MOST_QUERIES = 28  # per side; a larger map offers every second query, or third
MOST_HEADS = 8
MOST_GROUPS = 8
CHANNELS_SHOWN = 8
MOST_CHANNEL_SIDE = 56
LEVELS = 16
SHOWN_SIDE = 288  # pixels of the pictures that stand in the page without scripts


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One sample with its attention.

    Attributes:
        image: what the model saw.
        name: what to call the sample.
        right: whether the model named it correctly.
        record: the attention in it.
    """

    image: Image.Image
    name: str
    right: bool
    record: AttentionRecord


def sample_data(sample: Explained) -> dict[str, Any]:
    """All the browser needs to draw a sample, as JSON values."""
    return {
        "name": sample.name,
        "right": sample.right,
        "image": drawing.data_uri(sample.image),
        "width": sample.image.width,
        "height": sample.image.height,
        "windows": [window_data(stage) for stage in sample.record.windows],
        "channels": [channel_data(stage) for stage in sample.record.channels],
    }


def window_data(stage: StageWindows) -> dict[str, Any]:
    """The tiles of a lattice of queries: the mean over heads, then single heads below it."""
    (H, W), P = stage.side, stage.window
    step = -(-max(H, W) // MOST_QUERIES)
    rows, columns = lattice(H, step), lattice(W, step)
    tiles = stage.tiles(rows, columns)  # (rows, columns, heads, P, P)
    inside = [(i[:, None] // P * P + torch.arange(P)) < side for i, side in ((rows, H), (columns, W))]
    real = tiles * (inside[0][:, None, None, :, None] & inside[1][None, :, None, None, :])
    mean = real.mean(2, keepdim=True)
    shown = torch.cat([mean, real[:, :, :MOST_HEADS]], 2)
    shown = shown / shown.amax((3, 4), keepdim=True).clamp_min(1e-12)
    sheet = shown.permute(2, 0, 3, 1, 4).reshape(-1, len(columns) * P)
    padding = 1.0 - mean.sum((2, 3, 4))
    return {
        "stage": stage.stage,
        "side": [H, W],
        "stride": stage.stride,
        "window": P,
        "step": step,
        "rows": rows.tolist(),
        "columns": columns.tolist(),
        "heads": stage.num_heads,
        "shown": shown.shape[2] - 1,
        "sprite": drawing.data_uri(drawing.sprite(sheet, LEVELS, see_through=True)),
        "peak": percents(mean.amax((2, 3, 4))),
        "padding": percents(padding) if bool((padding > 1e-4).any()) else None,
        "received": drawing.data_uri(drawing.sprite(drawing.unit(stage.received()), LEVELS, see_through=True)),
    }


def channel_data(stage: StageChannels) -> dict[str, Any]:
    """The affinity of each group side by side, and the maps of its most energetic channels."""
    shown = min(MOST_GROUPS, len(stage.affinity))
    affinity = stage.affinity[:shown]
    affinity = affinity / affinity.amax((1, 2), keepdim=True)
    chosen = [stage.energetic(group, CHANNELS_SHOWN) for group in range(shown)]
    maps = torch.stack([channel_maps(stage, group, chosen[group]) for group in range(shown)])  # (groups, 2, n, h, w)
    h, w = maps.shape[-2:]
    return {
        "stage": stage.stage,
        "groups": len(stage.affinity),
        "shown": shown,
        "channels": affinity.shape[-1],
        "side": [h, w],
        "chosen": chosen,
        "affinity": drawing.data_uri(drawing.sprite(affinity.transpose(0, 1).flatten(1), 64)),
        "maps": drawing.data_uri(drawing.sprite(maps.permute(0, 1, 3, 2, 4).flatten(3).flatten(0, 2), LEVELS)),
    }


def channel_maps(stage: StageChannels, group: int, chosen: Sequence[int]) -> Tensor:
    """Magnitudes of channels before and after the attention, each over its own largest: (2, chosen, h, w)."""
    maps = torch.stack([stage.values[group, chosen], stage.attended[group, chosen]]).abs()
    H, W = maps.shape[-2:]
    if max(H, W) > MOST_CHANNEL_SIDE:
        scale = MOST_CHANNEL_SIDE / max(H, W)
        maps = F.interpolate(maps, (max(1, int(H * scale)), max(1, int(W * scale))), mode="area")
    return maps / maps.amax((2, 3), keepdim=True).clamp_min(1e-12)


def lattice(side: int, step: int) -> Tensor:
    """The middle of every run of `step` positions."""
    return (torch.arange(0, side, step) + step // 2).clamp_max(side - 1)


def percents(shares: Tensor) -> list[list[float]]:
    """Shares as percent, rounded for the page."""
    return [[round(100 * share, 1) for share in row] for row in shares.tolist()]


def window_section(sample: Explained) -> str:
    """The window-attention part, drawn for the position in the middle of a sample."""
    windows = sample.record.windows
    image = f'<img class="pixel" src="{drawing.data_uri(sample.image)}" alt="{escape(sample.name)}">'
    stages = "".join(_window_figure(sample, stage, index) for index, stage in enumerate(windows))
    received = "".join(_received_figure(sample, stage, index) for index, stage in enumerate(windows))
    ramp = drawing.data_uri(drawing.sprite(torch.linspace(0, 1, 64)[None], 64))
    return (
        f'<div class="explorer"><div class="query"><div class="view pad" id="pad">{image}</div>'
        '<p class="quiet" id="pad-help">The outlined square is the position that asks. '
        '<span class="scripted">Point at any picture to move it, click to hold it there, or focus this picture and '
        'use the arrow keys.</span></p><p class="heard" id="pad-says" aria-live="polite"></p></div>'
        f'<div><div class="stages">{stages}</div><p class="legend quiet">no attention'
        f'<img class="ramp" src="{ramp}" alt="colours from dark to bright">the most in the window</p></div></div>'
        "<h3>Where attention gathers</h3><p>The same attention, averaged over all positions that ask and all heads: "
        "bright positions are looked at by their whole window, dark ones are ignored.</p>"
        f'<div class="stages small">{received}</div>'
    )


def channel_section(sample: Explained) -> str:
    """The channel-attention part, drawn for the first group of each stage of a sample."""
    return "".join(_channel_block(sample, stage, index) for index, stage in enumerate(sample.record.channels))


def sample_buttons(samples: Sequence[Explained]) -> str:
    """The strip that chooses a sample; hidden where scripts do not run."""
    buttons = "".join(
        f'<button type="button" data-sample="{index}" aria-pressed="{"false" if index else "true"}">'
        f'<img class="pixel" src="{drawing.data_uri(drawing.fit(sample.image, 96))}" alt="">'
        f"{_verdict(sample)}</button>"
        for index, sample in enumerate(samples)
    )
    return f'<div class="samples" role="group" aria-label="Choose a picture">{buttons}</div>'


def _verdict(sample: Explained) -> str:
    if sample.right:
        return f"<span>{escape(sample.name)}</span>"
    return f'<span class="wrong" title="The model names this one wrong">{escape(sample.name)} \u2717</span>'


def _size(sample: Explained) -> int:
    return max(1, SHOWN_SIDE // max(sample.image.size))


def _window_figure(sample: Explained, stage: StageWindows, index: int) -> str:
    (H, W), P, scale = stage.side, stage.window, _size(sample)
    seen = stage.at_pixel(sample.image.height // 2, sample.image.width // 2)
    drawn = drawing.overlay(sample.image, drawing.unit(seen.mean), stage.stride, scale=scale)
    unit = stage.stride * scale
    top, left, bottom, right = (edge * unit for edge in seen.window)
    drawn = drawing.mark(drawn, (left, top, min(right, drawn.width), min(bottom, drawn.height)), "#8a8592")
    row, column = seen.query
    drawn = drawing.mark(drawn, (column * unit, row * unit, (column + 1) * unit, (row + 1) * unit))
    heads = f"{stage.num_heads} heads" if stage.num_heads > 1 else "1 head"
    return (
        f'<figure class="stage" data-window="{index}"><div class="view"><img src="{drawing.data_uri(drawn)}" '
        f'alt="Window attention of the middle position at stage {stage.stage + 1}"></div><figcaption>'
        f"<strong>Stage {stage.stage + 1}</strong>{H} x {W} positions, windows of {P} x {P}, {heads}<br>"
        f'<span class="says">{_says(float(seen.mean.max()), float(seen.padding.mean()))}</span></figcaption>'
        '<div class="heads"></div></figure>'
    )


def _says(peak: float, padding: float) -> str:
    lost = f", {100 * padding:.0f} % to padding" if padding > 0.005 else ""
    return f"brightest square: {100 * peak:.0f} %{lost}"


def _received_figure(sample: Explained, stage: StageWindows, index: int) -> str:
    drawn = drawing.overlay(sample.image, drawing.unit(stage.received()), stage.stride, scale=_size(sample))
    return (
        f'<figure class="stage" data-received="{index}"><div class="view"><img src="{drawing.data_uri(drawn)}" '
        f'alt="Attention received at stage {stage.stage + 1}"></div>'
        f"<figcaption>Stage {stage.stage + 1}</figcaption></figure>"
    )


def _channel_block(sample: Explained, stage: StageChannels, index: int) -> str:
    groups, D, H, W = stage.attended.shape
    chosen = stage.energetic(0, CHANNELS_SHOWN)
    matrix = drawing.enlarge(drawing.heat(drawing.unit(stage.affinity[0])), 192)
    plural = f"{groups} groups of {D} channels" if groups > 1 else f"1 group of {D} channels"
    return (
        f'<div class="channel" data-channel="{index}"><h4>Stage {stage.stage + 1} <small>{plural}, maps of {H} x {W}'
        f'</small></h4><div class="groups"></div><figure class="matrix"><div class="view">'
        f'<img class="pixel" src="{drawing.data_uri(matrix)}" alt="Affinity of group 1 of {escape(sample.name)}"></div>'
        f"<figcaption>Affinity, {D} x {D}</figcaption></figure>{_channel_pictures(stage, chosen)}</div>"
    )


def _channel_pictures(stage: StageChannels, chosen: Sequence[int]) -> str:
    if stage.attended.shape[2:] == (1, 1):
        return '<p class="quiet">The map is a single position here, so a channel is one number and has no picture.</p>'
    tiles = [drawing.enlarge(drawing.heat(tile), 72) for row in channel_maps(stage, 0, chosen) for tile in row]
    sheet = drawing.contact_sheet(tiles, len(chosen))
    ids = "".join(f"<span>{channel}</span>" for channel in chosen)
    return (
        f'<figure class="pictures"><div class="ids" style="--columns:{len(chosen)}">{ids}</div><div class="view">'
        f'<img class="pixel" src="{drawing.data_uri(sheet)}" alt="Maps of the most energetic channels"></div>'
        "<figcaption>The most energetic channels. Top: the map of the channel itself. Bottom: after the attention "
        "mixed in the others.</figcaption></figure>"
    )
