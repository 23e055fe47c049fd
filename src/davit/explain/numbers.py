"""The numbers at the head of a report."""

import math
from html import escape

from davit.explain import charts


def numbers_row(metrics: dict[str, float]) -> str:
    """Each number under its name."""
    shown = [(_label(key), _amount(key, value)) for key, value in metrics.items()]
    items = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in shown)
    return f'<dl class="numbers-row">{items}</dl>'


def is_share(key: str) -> bool:
    """Whether a score is a fraction, to be shown as percent."""
    return (
        key.startswith(("top", "box_ap", "mask_ap"))
        or key in ("miou", "aacc", "macc")
        or key.endswith(("_r1", "_r5", "_r10"))
    )


def _label(key: str) -> str:
    known = {
        "top1": "Top-1 accuracy",
        "top5": "Top-5 accuracy",
        "count": "Test images",
        "seconds": "Training time",
        "images_per_second": "Images per second",
        "parameters": "Parameters",
        "macs": "Multiply-adds",
        "validation_loss": "Validation loss",
        "miou": "Mean IoU",
        "aacc": "Pixel accuracy",
        "macc": "Mean class accuracy",
        "image_to_text_r1": "Image to text, R@1",
        "image_to_text_r5": "Image to text, R@5",
        "text_to_image_r1": "Text to image, R@1",
        "text_to_image_r5": "Text to image, R@5",
    }
    return known.get(key, key.replace("_", " ").capitalize().replace(" ap", " AP "))


def _amount(key: str, value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    if is_share(key):
        return charts.percent(value)
    if key == "seconds":
        return f"{value:.1f} s"
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e5, " k")):
        if value >= size:
            return f"{value / (1e3 if size == 1e5 else size):.3g}{suffix}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else charts.plain(value)
