"""Numbers as a person reads them, with examples written by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.run.numbers import compact, duration, grouped, loss


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"), (1, "1"), (999, "999"), (1000, "1 k"), (1234, "1.23 k"), (12345, "12.3 k"), (999_999, "1 M"), (3e6, "3 M"),
        (1.5e9, "1.5 B"), (2e12, "2 T"), (0.5, "0.5"), (0.00034, "3.4e-4"), (1e-3, "0.001"), (-1500, "-1.5 k"), (1e21, "1000000 Q"),
        (math.nan, "nan"), (-math.inf, "-inf"),
    ],
)  # fmt: skip
def test_compact(value: float, expected: str) -> None:
    assert compact(value).replace("\u202f", " ") == expected


def test_flops_are_counted_in_giga() -> None:
    assert compact(1.5e9, "si") == "1.5\u202fG" and compact(2.5e18, "si") == "2.5\u202fE"


@given(st.floats(1e-12, 1e20))
def test_compact_is_within_its_digits(value: float) -> None:
    text = compact(value).replace("\u202f", "")
    factor = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12, "Q": 1e15}.get(text[-1], 1.0)
    read = float(text.rstrip("kMBTQ")) * factor
    assert read == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (0.57, "0.57 s"),
        (5, "5 s"),
        (59.6, "1 min"),
        (252, "4 min 12 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (90061, "1 d 1 h"),
        (-1, "-1"),
    ],
)
def test_duration(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_grouped_and_loss() -> None:
    assert grouped(1234567) == "1\u202f234\u202f567"
    assert [loss(v) for v in (2.34567, 0.00012, 0.0, math.nan)] == ["2.346", "1.2e-4", "0", "nan"]
