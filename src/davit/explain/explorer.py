"""The parts of a page in which one looks at explained pictures, drawn for the first of them and its middle position."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from torch import Tensor

from davit.explain import drawing
from davit.explain.attention_figures import channel_section, pad, scale_of, window_section
from davit.explain.explained import Explained, PictureRollout
from davit.explain.payload import sample_data
from davit.models.config import STRIDES

ATTENTION_BYTES = 3_000_000

CAM_TOLD = (
    "<p>Grad-CAM lights the places whose features raise one number of the answer: the logit of a class, the score of "
    "an object, the pixels of an area, or the likeness to a text. Maps of early stages are fine and know little; the "
    "last one is coarse and knows most.</p>"
)
ROLLOUT_TOLD = (
    "<p>Through all blocks together: from which cells of the picture a position of the last map can have drawn, if "
    "every attention is a share of a flow and nothing is lost on the way. It shows roads, not what travels on them, "
    "and is the same for every class.</p>"
)
WINDOWS_TOLD = (
    "<p>At each stage, every position of the picture looks only at the positions in its own window. Choose a "
    "position: the bright squares are what it draws on. Later stages see coarser, wider windows.</p>"
)
CHANNELS_TOLD = (
    "<p>Here each channel of the network, a picture of its own, is mixed with the other channels of its group, over "
    "the whole image at once. In the affinity matrix, a row says which channels (columns) a channel takes from: bright "
    "means much. Choose a channel to see from which.</p>"
)


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


def explained_sections(
    explained: Sequence[tuple[Explained, object]], *, strip: bool = True
) -> dict[str, tuple[str, str]]:
    """Sections in which a reader looks at some pictures and what explains them.

    Args:
        explained: of `within_budget`.
        strip: begin each section with the buttons that choose a picture.
    """
    samples = [sample for sample, _ in explained]
    if not samples:
        return {}
    first, buttons = samples[0], sample_buttons(samples) if strip else ""
    sections: dict[str, tuple[str, str]] = {}
    with_cams = next((sample for sample in samples if sample.cams), None)
    if with_cams:
        sections["evidence"] = ("What the answer rests on", CAM_TOLD + buttons + cam_section(with_cams))
    if first.rollout:
        sections["rollout"] = ("Attention rollout", ROLLOUT_TOLD + buttons + rollout_section(first, first.rollout))
    if first.record.windows:
        sections["windows"] = ("Window attention", WINDOWS_TOLD + buttons + window_section(first))
    if first.record.channels:
        sections["channels"] = ("Channel attention", CHANNELS_TOLD + buttons + channel_section(first))
    return sections


def cam_section(sample: Explained) -> str:
    """Grad-CAM, and occlusion where there is one, drawn for the surest answer of a sample."""
    cam = sample.cams[0]
    target, scale = cam.target, scale_of(sample)
    drawn = drawing.overlay(
        sample.image, drawing.unit(cam.maps[target.stage]), STRIDES[target.stage], smooth=True, scale=scale
    )
    if target.box:
        left, top, right, bottom = (round(edge * scale) for edge in target.box)
        drawn = drawing.mark(drawn, (left, top, right, bottom))
    told = f"{target.label}, {target.score:.3f}; map of stage {target.stage + 1}"
    occlusion = _occlusion_figure(sample, cam.occlusion, cam.cell, scale) if cam.occlusion is not None else ""
    return (
        '<div data-cam><p class="choice scripted"><span>Explain</span> <span class="targets" role="group" '
        'aria-label="What is explained"></span></p><p class="choice scripted"><span>Map of stage</span> '
        '<span class="maps" role="group" aria-label="At which map"></span></p><div class="stages">'
        f'<figure class="stage wide" data-heat><div class="view"><img src="{drawing.data_uri(drawn)}" alt="Grad-CAM of '
        f'{escape(target.label, quote=True)}"></div><figcaption><strong>Grad-CAM</strong><span class="says">'
        f"{escape(told)}</span></figcaption></figure>{occlusion}</div></div>"
    )


def _occlusion_figure(sample: Explained, lost: Tensor, cell: int, scale: int) -> str:
    drawn = drawing.overlay(sample.image, drawing.unit(lost.clamp_min(0)), cell, smooth=True, scale=scale)
    return (
        f'<figure class="stage wide" data-covered><div class="view"><img src="{drawing.data_uri(drawn)}" alt="Occlusion'
        '"></div><figcaption><strong>Occlusion</strong>bright where covering the picture costs the answer most'
        "</figcaption></figure>"
    )


def rollout_section(sample: Explained, rollout: PictureRollout) -> str:
    """Rollout of the middle position and the mean over all."""
    middle = rollout.tiles[len(rollout.rows) // 2, len(rollout.columns) // 2]
    shown = (
        ("position", middle, "One position", "of the last map: the outlined square of 32 x 32 pixels"),
        ("mean", rollout.mean, "The mean", "over all positions of the last map"),
    )
    figures = "".join(
        f'<figure class="stage wide" data-rollout="{key}"><div class="view"><img src="{_rolled(sample, x)}" '
        f'alt="Rollout"></div><figcaption><strong>{name}</strong>{told}<br><span class="says">{_range(x)}</span>'
        "</figcaption></figure>"
        for key, x, name, told in shown
    )
    asks = "The outlined square is where one looks."
    return f'<div class="explorer">{pad(sample, asks)}<div><div class="stages">{figures}</div></div></div>'


def _rolled(sample: Explained, shares: Tensor) -> str:
    drawn = drawing.overlay(sample.image, drawing.stretched(shares), STRIDES[0], scale=scale_of(sample))
    return drawing.data_uri(drawn)


def _range(shares: Tensor) -> str:
    low, high = (shares.numel() * float(edge) for edge in shares.aminmax())
    return f"dark {low:.2f}, bright {high:.2f} times an even share"


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
