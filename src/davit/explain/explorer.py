"""The parts of a page in which one looks at explained pictures, drawn for the first of them and its middle position."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import torch

from davit.explain import drawing
from davit.explain.attention_maps import BlockChannels, BlockWindows
from davit.explain.explained import Explained
from davit.explain.payload import channel_maps, sample_data

ATTENTION_BYTES = 3_000_000
CHANNELS_SHOWN = 8
SHOWN_SIDE = 288  # pixels of the pictures that stand in the page without scripts


def within_budget(samples: Iterable[Explained]) -> list[tuple[Explained, dict[str, Any]]]:
    """Explained pictures with their payloads, until the payloads have filled `ATTENTION_BYTES`; at least one."""
    found: list[tuple[Explained, dict[str, Any]]] = []
    size = 0
    for sample in samples:
        payload = sample_data(sample)
        size += len(json.dumps(payload))
        if found and size > ATTENTION_BYTES:
            break
        found.append((sample, payload))
    return found


def explained_sections(explained: Sequence[tuple[Explained, object]]) -> dict[str, tuple[str, str]]:
    """Sections in which a reader looks at some pictures and what explains them."""
    samples = [sample for sample, _ in explained]
    if not samples:
        return {}
    sections: dict[str, tuple[str, str]] = {}
    buttons = sample_buttons(samples)
    if samples[0].record.windows:
        told = (
            "<p>At each stage, every position of the picture looks only at the positions in its own window. Choose a "
            "position: the bright squares are what it draws on. Later stages see coarser, wider windows.</p>"
        )
        sections["windows"] = ("Window attention", told + buttons + window_section(samples[0]))
    if samples[0].record.channels:
        told = (
            "<p>Here each channel of the network, a picture of its own, is mixed with the other channels of its group, "
            "over the whole image at once. In the affinity matrix, a row says which channels (columns) a channel takes "
            "from: bright means much.</p>"
        )
        sections["channels"] = ("Channel attention", told + buttons + channel_section(samples[0]))
    return sections


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


def _window_figure(sample: Explained, stage: BlockWindows, index: int) -> str:
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


def _received_figure(sample: Explained, stage: BlockWindows, index: int) -> str:
    drawn = drawing.overlay(sample.image, drawing.unit(stage.received()), stage.stride, scale=_size(sample))
    return (
        f'<figure class="stage" data-received="{index}"><div class="view"><img src="{drawing.data_uri(drawn)}" '
        f'alt="Attention received at stage {stage.stage + 1}"></div>'
        f"<figcaption>Stage {stage.stage + 1}</figcaption></figure>"
    )


def _channel_block(sample: Explained, stage: BlockChannels, index: int) -> str:
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


def _channel_pictures(stage: BlockChannels, chosen: Sequence[int]) -> str:
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
