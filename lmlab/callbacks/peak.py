"""How fast this machine multiplies matrices: what the utilisation of a run is measured against."""

from __future__ import annotations

import functools
import time

import torch

SIZES = {"cpu": 1024, "cuda": 8192, "mps": 4096}  # large enough to be bound by arithmetic, small enough for several in the time
SECONDS = 0.25


def training_dtype(precision: str) -> torch.dtype:
    """The number format in which a trainer multiplies.

    Args:
        precision: Lightning's name, such as `bf16-mixed`.
    """
    if precision.startswith("bf16"):
        return torch.bfloat16
    return {"16": torch.float16, "64": torch.float64}.get(precision.split("-")[0], torch.float32)


@functools.cache
def peak_flops(device: str, dtype: torch.dtype) -> float | None:
    """FLOPs per second of the best of several large matrix products, measured once for each process.

    Nothing is drawn from torch's random generator, so a run with and one without it are the same run.

    Args:
        device: `cpu`, `cuda`, `cuda:1`, …
        dtype: Number format.

    Returns:
        None where the device or the format cannot multiply.
    """
    size = SIZES.get(device.split(":")[0], 1024)
    try:
        left = torch.full((size, size), 0.5, device=device, dtype=dtype)
        _multiply(left)  # the first call chooses a kernel
        best, begin = float("inf"), time.perf_counter()
        while time.perf_counter() - begin < SECONDS:
            best = min(best, _multiply(left))
    except RuntimeError:  # a display must not end a run
        return None
    return 2 * size**3 / best


@torch.no_grad()
def _multiply(matrix: torch.Tensor) -> float:
    begin = time.perf_counter()
    product = matrix @ matrix
    product[0, 0].item()  # waits for an asynchronous device
    return time.perf_counter() - begin
