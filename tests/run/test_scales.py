"""Ticks and label places, checked by the properties a reader sees."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from lmlab.run.scales import Axis, log_ticks, nice_ticks, spread

lows = st.floats(-1e6, 1e6)
widths = st.floats(1e-6, 1e9)


@given(lows, widths, st.integers(2, 10))
def test_ticks_are_round_even_and_inside(low: float, width: float, count: int) -> None:
    high = low + width
    if high - low < 1e-6 * max(abs(low), 1e-9):
        return
    ticks = nice_ticks(low, high, count)
    assert len(ticks) <= count + 1
    assert all(low - 1e-6 * width <= t <= high + 1e-6 * width for t in ticks)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    for step in steps:
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-3


def test_known_ticks() -> None:
    assert nice_ticks(0, 2000, 4) == [0, 500, 1000, 1500, 2000]
    assert nice_ticks(2.1, 9.2, 5) == [4, 6, 8]
    assert nice_ticks(0, 3e-4, 4) == [0, 1e-4, 2e-4, 3e-4]
    assert log_ticks(1, 1000, 10) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    assert log_ticks(1, 1000, 5) == [1, 10, 100, 1000]
    assert log_ticks(3, 4, 5) == [3, 4]
    assert len(log_ticks(1, 1e12, 4)) <= 4


def test_scales_are_linear_or_logarithmic() -> None:
    assert Axis(0, 10, 100, 0).pixel(2.5) == 75
    assert Axis(1, 100, 0, 10, "log").pixels([1, 10, 100]) == [0, 5, 10]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_labels_keep_their_order_and_their_distance(places: list[float]) -> None:
    moved = spread(places, 15, 0, 100)
    order = sorted(range(len(places)), key=lambda i: (places[i], i))
    assert all(moved[b] - moved[a] >= 15 - 1e-9 for a, b in itertools.pairwise(order))
    assert all(-1e-9 <= m <= 100 + 1e-9 for m in moved)


def test_labels_that_have_room_stay() -> None:
    assert spread([10, 50, 90], 15, 0, 100) == [10, 50, 90]
