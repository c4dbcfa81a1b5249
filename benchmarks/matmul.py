"""The most that this machine gets out of a matrix multiplication: what utilisation is measured against."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

SIZES = (1024, 2048)


def matmul_peak(dtype: torch.dtype, tries: int = 5, clock: Callable[[], float] = time.perf_counter) -> float:
    """FLOPs per second of the best of several large square products.

    Args:
        dtype: Of both factors.
        tries: Products of each size, after one that does not count.
        clock: As in `benchmarks.timing.interleave`.
    """
    best = 0.0
    for size in SIZES:
        left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
        for index in range(tries + 1):
            start = clock()
            left @ right
            seconds = clock() - start
            if index:
                best = max(best, 2 * size**3 / seconds)
    return best
