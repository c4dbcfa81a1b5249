"""Interleaved timing: on a machine that others use too, only neighbours in time can be compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

Seconds = dict[str, list[float]]


class Ratio(NamedTuple):
    """How much faster one side is than the other, round by round."""

    median: float
    lowest: float
    highest: float


def interleave(
    sides: Mapping[str, Callable[[], None]], rounds: int, calls: int = 1, clock: Callable[[], float] = time.perf_counter
) -> Seconds:
    """Runs the sides in turn, A B A B, after one call of each that does not count.

    Args:
        sides: What to time.
        rounds: How often each side has its turn.
        calls: Calls in a turn.
        clock: Wall time; `time.process_time` leaves out the time for which others had the processor, but counts waiting threads.

    Returns:
        Seconds per call of each side, one number a round.
    """
    for run in sides.values():
        run()
    seconds: Seconds = {name: [] for name in sides}
    for index in range(rounds):
        order = list(sides) if index % 2 == 0 else list(sides)[::-1]  # so that a drift of the machine favours nobody
        for name in order:
            start = clock()
            for _ in range(calls):
                sides[name]()
            seconds[name].append((clock() - start) / calls)
    return seconds


def speedup(slow: list[float], fast: list[float]) -> Ratio:
    """Seconds of `slow` over seconds of `fast`, paired by round."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
