"""Tensors of which each rank holds a part, as a whole and back."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts. Every rank must ask, for they exchange them.

    Its gradient is the mean over ranks, as FSDP has it for parameters that a forward pass has gathered.

    Args:
        tensor: Sharded or not; one that is not is returned as it is.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim)


@torch.no_grad()
def fill(target: Tensor, values: Tensor) -> None:
    """Copies a whole tensor into one that may be sharded; each rank takes its part, without asking the others.

    Args:
        target: Where to; of the same shape.
        values: The whole, the same on all ranks.
    """
    if isinstance(target, DTensor):
        there = values.to(device=target.device, dtype=target.dtype)
        values = distribute_tensor(there, target.device_mesh, target.placements, src_data_rank=cast("int", None))
    target.copy_(values)
