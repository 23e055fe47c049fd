"""Attention of both kinds as parts of a page, drawn for the last block of each stage and the middle position."""

from collections.abc import Sequence
from html import escape

import torch
from PIL import Image
from torch import Tensor

from davit.explain import drawing
from davit.explain.attention_maps import BlockChannels, BlockWindows
from davit.explain.explained import Explained
from davit.explain.payload import channel_maps

CHANNELS_SHOWN = 8
SHOWN_SIDE = 288  # pixels of the pictures that stand in the page without scripts


def window_section(sample: Explained) -> str:
    """The window-attention part, drawn for the position in the middle of a sample."""
    windows = {block.stage: block for block in sample.record.windows}.values()  # the last of each stage
    stages = "".join(_window_figure(sample, block) for block in windows)
    received = "".join(_received_figure(sample, block) for block in windows)
    ramp = drawing.data_uri(drawing.sprite(torch.linspace(0, 1, 64)[None], 64))
    return (
        f'<div class="explorer">{pad(sample, "The outlined square is the position that asks.")}'
        f'<div><div class="stages">{stages}</div><p class="legend quiet">no attention'
        f'<img class="ramp" src="{ramp}" alt="colours from dark to bright">the most in the window</p></div></div>'
        "<h3>Where attention gathers</h3><p>The same attention, averaged over all positions that ask and all heads: "
        "bright positions are looked at by their whole window, dark ones are ignored.</p>"
        f'<div class="stages small">{received}</div>'
    )


def channel_section(sample: Explained) -> str:
    """The channel-attention part, drawn for the first group of each stage of a sample."""
    blocks = {block.stage: block for block in sample.record.channels}.values()
    return "".join(_channel_block(sample, block) for block in blocks)


def pad(sample: Explained, told: str) -> str:
    """The picture in which one chooses the position that asks."""
    image = f'<img class="pixel" src="{drawing.data_uri(sample.image)}" alt="{escape(sample.name)}">'
    return (
        f'<div class="query"><div class="view pad">{image}</div><p class="quiet">{told} <span class="scripted">Point '
        "at any picture to move it, click to hold it there, or focus this picture and use the arrow keys.</span></p>"
        '<p class="heard pad-says" aria-live="polite"></p></div>'
    )


def scale_of(sample: Explained) -> int:
    """How much a still picture is enlarged."""
    return max(1, SHOWN_SIDE // max(sample.image.size))


def _window_figure(sample: Explained, stage: BlockWindows) -> str:
    (H, W), P, scale = stage.side, stage.window, scale_of(sample)
    seen = stage.at_pixel(sample.image.height // 2, sample.image.width // 2)
    drawn = drawing.overlay(sample.image, drawing.unit(seen.mean), stage.stride, scale=scale)
    unit = stage.stride * scale
    top, left, bottom, right = (edge * unit for edge in seen.window)
    drawn = drawing.mark(drawn, (left, top, min(right, drawn.width), min(bottom, drawn.height)), "#8a8592")
    row, column = seen.query
    drawn = drawing.mark(drawn, (column * unit, row * unit, (column + 1) * unit, (row + 1) * unit))
    heads = f"{stage.num_heads} heads" if stage.num_heads > 1 else "1 head"
    return (
        f'<figure class="stage" data-window="{stage.stage}"><div class="view"><img src="{drawing.data_uri(drawn)}" '
        f'alt="Window attention of the middle position at stage {stage.stage + 1}"></div><figcaption>'
        f"<strong>Stage {stage.stage + 1}</strong>{H} x {W} positions, windows of {P} x {P}, {heads}<br>"
        f'<span class="says">{_says(float(seen.mean.max()), float(seen.padding.mean()))}</span></figcaption>'
        '<div class="blocks"></div><div class="heads"></div></figure>'
    )


def _says(peak: float, padding: float) -> str:
    lost = f", {100 * padding:.0f} % to padding" if padding > 0.005 else ""
    return f"brightest square: {100 * peak:.0f} %{lost}"


def _received_figure(sample: Explained, stage: BlockWindows) -> str:
    drawn = drawing.overlay(sample.image, drawing.unit(stage.received()), stage.stride, scale=scale_of(sample))
    return (
        f'<figure class="stage" data-received="{stage.stage}"><div class="view"><img src="{drawing.data_uri(drawn)}" '
        f'alt="Attention received at stage {stage.stage + 1}"></div>'
        f"<figcaption>Stage {stage.stage + 1}</figcaption></figure>"
    )


def _channel_block(sample: Explained, stage: BlockChannels) -> str:
    groups, D, H, W = stage.attended.shape
    chosen = stage.energetic(0, CHANNELS_SHOWN)
    matrix = drawing.enlarge(drawing.heat(drawing.unit(stage.affinity[0])), 192)
    plural = f"{groups} groups of {D} channels" if groups > 1 else f"1 group of {D} channels"
    return (
        f'<div class="channel" data-channel="{stage.stage}"><h4>Stage {stage.stage + 1} <small>{plural}, maps of {H} x '
        f'{W}</small></h4><div class="blocks"></div><div class="groups"></div><figure class="matrix"><div class="view">'
        f'<img class="pixel" src="{drawing.data_uri(matrix)}" alt="Affinity of group 1 of {escape(sample.name)}"></div>'
        f'<figcaption>Affinity, {D} x {D} <span class="takes"></span></figcaption></figure>'
        f"{_channel_pictures(stage, chosen)}</div>"
    )


def _channel_pictures(stage: BlockChannels, chosen: Sequence[int]) -> str:
    if stage.attended.shape[2:] == (1, 1):
        return '<p class="quiet">The map is a single position here, so a channel is one number and has no picture.</p>'
    maps = channel_maps(stage, 0, chosen)
    boxes = "".join(
        f'<button type="button" class="token"><span><img class="pixel" '
        f'src="{drawing.data_uri(_before_and_after(pair))}" alt="Maps of channel {channel}"></span>'
        f"<small>{channel}</small></button>"
        for channel, pair in zip(chosen, maps.unbind(1), strict=True)
    )
    return (
        f'<figure class="pictures"><div class="tokens">{boxes}</div><figcaption>The most energetic channels first. '
        "Top: the map that the channel stands for. Bottom: after the attention mixed in the others.</figcaption>"
        "</figure>"
    )


def _before_and_after(pair: Tensor) -> Image.Image:
    tiles = [drawing.enlarge(drawing.heat(tile), 72) for tile in pair]
    return drawing.contact_sheet(tiles, 1, gap=3)
