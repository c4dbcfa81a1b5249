"""From values to pixels: axes, round ticks, and labels that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

Scale = Literal["linear", "log"]


class Axis(NamedTuple):
    """A scale from values to pixels.

    Args:
        low: Value at the first pixel.
        high: Value at the last pixel.
        start: First pixel.
        end: Last pixel.
        scale: How values are spaced.
    """

    low: float
    high: float
    start: float
    end: float
    scale: Scale = "linear"

    def pixel(self, value: float) -> float:
        """Where a value lies."""
        return self.pixels([value])[0]

    def pixels(self, values: Sequence[float]) -> list[float]:
        """Where many values lie; a curve may have a hundred thousand."""
        if self.scale == "log":
            low, high, values = math.log(self.low), math.log(self.high), [math.log(v) for v in values]
        else:
            low, high = self.low, self.high
        slope = (self.end - self.start) / (high - low)
        return [self.start + (v - low) * slope for v in values]


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Round positions that span a range: steps of 1, 2 or 5 times a power of ten.

    Args:
        low: Smallest value.
        high: Largest value, above `low`.
        count: How many are wanted; there may be one or two more or fewer.
    """
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Round positions on a logarithmic axis: powers of ten, with 2 and 5 between them where few fit.

    Args:
        low: Smallest value, above 0.
        high: Largest value.
        count: About how many there may be.
    """
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1, 2, 5), (1,)):
        ticks = [m * 10.0**e for e in exponents for m in multiples if low * 0.999 <= m * 10.0**e <= high * 1.001]
        if len(ticks) <= count:
            return ticks or [low, high]
    return ticks[:: math.ceil(len(ticks) / count)]


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves labels apart until no two overlap, keeping their order.

    Args:
        places: Where they would like to be.
        gap: Least distance.
        low: First place allowed.
        high: Last place allowed.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for index in range(len(moved)):
        moved[index] = max(moved[index], low if index == 0 else moved[index - 1] + gap)
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], high if index == len(moved) - 1 else moved[index + 1] - gap)
    return [moved[order.index(i)] for i in range(len(places))]
