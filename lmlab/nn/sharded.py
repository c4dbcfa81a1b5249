"""Parameters of which each rank holds a share: their shares, and what they are together.

Two kinds are known: distributed tensors (FSDP2, tensor parallelism), and those that DeepSpeed's ZeRO-3 has taken apart. Of any other
parameter the share is the whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def share_of(parameter: Tensor) -> Tensor:
    """What this rank holds of a parameter; of distributed tensors themselves, for they compute by shares.

    Args:
        parameter: Sharded or not.
    """
    return _partition(parameter) if is_partitioned(parameter) else parameter.detach()


def is_partitioned(parameter: Tensor) -> bool:
    """Whether ZeRO-3 has taken a parameter apart.

    Args:
        parameter: Any.
    """
    return hasattr(parameter, "ds_tensor")


@torch.no_grad()
def whole(share: Tensor, parameter: Tensor) -> Tensor:
    """Puts the shares of all ranks together. Every rank must ask, for they exchange them.

    Args:
        share: This rank's, made like the parameter's.
        parameter: What it is a share of.

    Returns:
        A tensor of the parameter's full shape.
    """
    if is_partitioned(parameter):
        parts = [torch.empty_like(share) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, share.contiguous())
        zero: Any = parameter
        return torch.cat(parts)[: zero.ds_numel].view(zero.ds_shape)
    return share.full_tensor() if isinstance(share, DTensor) else share


@torch.no_grad()
def fill(share: Tensor, values: Tensor, parameter: Tensor) -> None:
    """Copies this rank's share of a whole tensor; ranks need not ask each other.

    Args:
        share: Where to.
        values: The whole, the same on all ranks; or this rank's share of it, distributed alike.
        parameter: What it is a share of.
    """
    if is_partitioned(parameter):
        start = distributed.get_rank() * share.numel()
        mine = values.flatten()[start : start + share.numel()]  # the last share is filled up
        share[: mine.numel()].copy_(mine)
    elif isinstance(share, DTensor) and not isinstance(values, DTensor):
        there = values.to(device=share.device, dtype=share.dtype)
        share.copy_(distribute_tensor(there, share.device_mesh, share.placements, src_data_rank=cast("int", None)))
    else:
        share.copy_(values)


@torch.no_grad()
def put(parameter: Tensor, share: Tensor) -> None:
    """Gives a parameter new values.

    Args:
        parameter: Sharded or not.
        share: Made like its own.
    """
    share_of(parameter).copy_(share)
    if is_partitioned(parameter) and parameter.numel():  # small ones stay together besides
        parameter.data.copy_(whole(share, parameter))


@torch.no_grad()
def load_whole(module: nn.Module, weights: Mapping[str, Tensor], strict: bool = True) -> list[str]:
    """As `load_state_dict`, for a module that may be sharded already.

    Args:
        module: Any.
        weights: Whole, by name, the same on all ranks.
        strict: Whether names have to be the same.

    Returns:
        Names that the module has and `weights` have not.

    Raises:
        RuntimeError: If names or shapes differ.
    """
    own, taken = module.state_dict(keep_vars=True), dict(weights)
    for name in own.keys() & weights.keys():
        parameter, values = own[name], weights[name]
        is_shared = is_partitioned(parameter) or isinstance(parameter, DTensor)
        if is_shared and values.shape == full_shape(parameter):
            share = share_of(parameter)
            fill(share, values, parameter)
            put(parameter, share)
            taken[name] = parameter.detach()  # what it is now
    return module.load_state_dict(taken, strict=strict).missing_keys


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part of a distributed tensor, an ordinary one; of any other, itself.

    Args:
        tensor: Such as a gradient.
    """
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, part: Tensor) -> Tensor:
    """Makes of a part what it is a part of.

    Args:
        tensor: Distributed or not.
        part: As `own_part` gives it, with other values.
    """
    if not isinstance(tensor, DTensor):
        return part
    place = tensor.device_mesh, tensor.placements
    return DTensor.from_local(part, *place, run_check=False, shape=tensor.shape, stride=tensor.stride())


def num_copies(tensor: Tensor) -> int:
    """On how many ranks each part of a distributed tensor is.

    Args:
        tensor: Distributed or not.
    """
    if not isinstance(tensor, DTensor):
        return 1
    parts = math.prod(tensor.device_mesh.size(i) for i, placement in enumerate(tensor.placements) if not placement.is_replicate())
    return distributed.get_world_size() // parts


@torch.no_grad()
def norm_of(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, the same on all ranks, (). Distributed ones may lie on different meshes.

    Args:
        gradients: At least one; either all are distributed, or none.
    """
    parts = torch._foreach_norm([own_part(g) for g in gradients])  # pyright: ignore[reportPrivateImportUsage]
    if not isinstance(gradients[0], DTensor):
        return torch.linalg.vector_norm(torch.stack(parts))
    total = torch.stack([part.double() ** 2 / num_copies(g) for part, g in zip(parts, gradients, strict=True)]).sum()
    distributed.all_reduce(total)
    return total.sqrt().to(parts[0].dtype)


def full_shape(parameter: Tensor) -> torch.Size:
    """The shape of all shares together.

    Args:
        parameter: Sharded or not.
    """
    return torch.Size(cast("Any", parameter).ds_shape) if is_partitioned(parameter) else parameter.shape


def _partition(parameter: Tensor) -> Tensor:
    return cast("Any", parameter).ds_tensor.detach()
