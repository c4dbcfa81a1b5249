"""Starts torch's streams of random numbers, as often as every micro-batch."""

from __future__ import annotations

import torch


def reseed(seed: int) -> None:
    """As `torch.manual_seed`, which on a machine without accelerators takes a millisecond to note what it would do if there were some.

    Args:
        seed: Of the streams of all devices.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
