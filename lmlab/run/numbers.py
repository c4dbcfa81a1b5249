"""Numbers as a person reads them: `1.2 k`, `3 M`, `4 min 12 s`."""

from __future__ import annotations

import math
from typing import Literal

PREFIXES = {"count": ("", "k", "M", "B", "T", "Q"), "si": ("", "k", "M", "G", "T", "P", "E", "Z")}
"""Tokens and parameters are counted in billions, FLOPs and bytes in giga."""

THIN_SPACE = "\u202f"


def compact(value: float, kind: Literal["count", "si"] = "count", digits: int = 3) -> str:
    """Few digits and a prefix: 1234 is `1.23 k`, 0.00034 is `3.4e-4`.

    Args:
        value: Any number; NaN and infinity are named.
        kind: Whether 10^9 is `B` (tokens, parameters) or `G` (FLOPs, bytes).
        digits: Significant digits.
    """
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{_trim(mantissa)}e{int(exponent)}"
    rounded = float(f"{value:.{digits}g}")  # first, so that 999 999 becomes 1 M and not 1000 k
    power = min(max(math.floor(math.log10(abs(rounded)) / 3), 0), len(PREFIXES[kind]) - 1)
    scaled = rounded / 1000**power
    decimals = max(digits - 1 - math.floor(math.log10(abs(scaled))), 0)
    text = _trim(f"{scaled:.{decimals}f}")
    return f"{text}{THIN_SPACE}{PREFIXES[kind][power]}" if power else text


def grouped(value: float) -> str:
    """A whole number with its thousands apart: `1 234 567`."""
    return f"{round(value):,}".replace(",", THIN_SPACE) if math.isfinite(value) else str(value)


def duration(seconds: float) -> str:
    """A length of time in its two largest units: `4 min 12 s`, `2 h 5 min`, `3 d 1 h`."""
    if not math.isfinite(seconds) or seconds < 0:
        return str(seconds)
    if seconds < 10:
        return f"{compact(seconds, digits=2)} s"
    total = round(seconds)
    parts = [(total // 86400, "d"), (total // 3600 % 24, "h"), (total // 60 % 60, "min"), (total % 60, "s")]
    first = next(index for index, (amount, _) in enumerate(parts) if amount)
    return " ".join(f"{amount} {unit}" for amount, unit in parts[first : first + 2] if amount)


def loss(value: float) -> str:
    """A loss or a rate with the digits that a comparison needs."""
    if not math.isfinite(value):
        return str(value)
    return compact(value) if 0 < abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.4g}"


def _trim(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text
