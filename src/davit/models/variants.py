"""The named members of the family; data only (paper table 1; Florence-2; our own small ones)."""

import fnmatch

from davit.models.config import DaViTConfig
from davit.naming import unknown_name

_SMALL = DaViTConfig(widths=(96, 192, 384, 768), depths=(1, 1, 9, 1))
_BASE = DaViTConfig(widths=(128, 256, 512, 1024), depths=(1, 1, 9, 1))
_LARGE = DaViTConfig(widths=(192, 384, 768, 1536), depths=(1, 1, 9, 1))
_HUGE = DaViTConfig(widths=(256, 512, 1024, 2048), depths=(1, 1, 9, 1), merge_kernel=3, window=16)

VARIANTS: dict[str, DaViTConfig] = {
    "davit_pico": DaViTConfig(widths=(32, 64, 128, 256), depths=(1, 1, 2, 1)),
    "davit_nano": DaViTConfig(widths=(64, 128, 256, 512), depths=(1, 1, 2, 1)),
    "davit_tiny": DaViTConfig(),
    "davit_small": _SMALL,
    "davit_base": _BASE,
    "davit_large": _LARGE,
    "davit_large_384": _LARGE.override(window=12),
    "davit_huge": _HUGE,
    "davit_giant": _HUGE.override(widths=(384, 768, 1536, 3072), depths=(1, 1, 12, 3)),
    "davit_base_florence2": _BASE.override(window=12, merge_kernel=3, channel_scale="tokens"),
    "davit_huge_florence2": _HUGE.override(window=12, channel_scale="tokens"),
}

IMAGE_SIZES: dict[str, int] = {name: 224 for name in VARIANTS} | {
    "davit_large_384": 384,
    "davit_huge": 512,
    "davit_giant": 512,
    "davit_base_florence2": 768,
    "davit_huge_florence2": 768,
}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the variants that match a shell pattern, smallest first."""
    return fnmatch.filter(VARIANTS, pattern)


def variant(name: str) -> DaViTConfig:
    """The config of a variant; an unknown name raises and names the nearest."""
    if name not in VARIANTS:
        raise unknown_name("variant", name, VARIANTS)
    return VARIANTS[name]
