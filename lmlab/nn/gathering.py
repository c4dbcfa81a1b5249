"""Rows of all ranks together, with their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def rank_and_size() -> tuple[int, int]:
    """This process among those that train together, and how many they are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gather(rows: Tensor) -> Tensor:
    """Puts the rows of all ranks one after the other, this rank's own among them.

    Gradients flow back to every rank's rows, from the losses of all ranks. A gather without gradients would leave a rank those of its own
    rows under its own loss alone, which is not the gradient of the sum.

    Args:
        rows: (N, ...) of any dtype; N is the same on all ranks.

    Returns:
        (N * ranks, ...); rank r's rows begin at r * N.
    """
    if rank_and_size()[1] == 1:
        return rows
    return _Gather.apply(rows) if rows.requires_grad else _all(rows)  # type: ignore[return-value]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return _all(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        rank, size = rank_and_size()
        summed = grads[0].contiguous().clone()  # what comes in may be in use elsewhere
        distributed.all_reduce(summed)
        return summed.chunk(size)[rank]


def _all(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(rank_and_size()[1])]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
