"""Amounts with units on the command line: times, sizes, rates."""

import math
import re

DURATIONS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
BYTES: dict[str, float] = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
RATES = {"/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600}
FLOPS = {"G": 1e9, "T": 1e12, "P": 1e15}


def parse_duration(flag: str, text: str) -> float:
    """Seconds, of text such as 50ms or 0.05s."""
    return _parse(flag, text, DURATIONS, "50ms or 0.05s")


def parse_bytes(flag: str, text: str) -> int:
    """Bytes, of text such as 2GB (2e9) or 500MiB; the case of letters does not count."""
    return math.floor(_parse(flag, text, BYTES, "2GB or 500MiB"))


def parse_rate(flag: str, text: str) -> float:
    """Images a second, of text such as 20/s or 1200/min."""
    return _parse(flag, text, RATES, "20/s or 1200/min")


def parse_flops(flag: str, text: str) -> float:
    """Operations a second, of text such as 300T, 300TFLOPS or 0.3P."""
    short = re.sub(r"(?i)flops?(/s)?$", "", text.strip())
    return _parse(flag, short, FLOPS, "300T or 0.3P", text)


def _parse(flag: str, text: str, units: dict[str, float], examples: str, given: str = "") -> float:
    found = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*(/?[a-z]+)", text.strip().lower())
    factors = {unit.lower(): factor for unit, factor in units.items()}
    try:
        value = float(found[1]) * factors[found[2]] if found else 0.0
    except (KeyError, ValueError):
        value = 0.0
    if not 0 < value < math.inf:
        raise ValueError(
            f"{flag} takes a positive number with its unit, such as {examples}, got {given or text!r}. "
            f"Units: {', '.join(units)}"
        )
    return value
