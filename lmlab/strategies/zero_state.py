"""Whole tensors out of a DeepSpeed engine, and into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.nn.sharded import is_partitioned
from lmlab.strategies.zero_kernels import is_kernel


def read_weights(module: nn.Module, keep: bool) -> dict[str, Tensor]:
    """All parameters and buffers, as `state_dict()` of one process names them. All ranks must ask, for they exchange parts.

    Args:
        module: Trained by an engine, or only measured.
        keep: Whether this rank wants them; an empty dict otherwise.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    whole: dict[int, Tensor] = {}
    for parameter in module.parameters():
        master = safe_get_full_fp32_param(parameter) if _is_trained(parameter) else None
        if master is None:
            with _together(parameter):
                master = parameter.detach()
                whole[id(parameter)] = master.cpu().clone()
        else:
            whole[id(parameter)] = master.cpu().clone()
        if not keep:
            whole.clear()
    if not keep:
        return {}
    shapes = module.state_dict(keep_vars=True)
    return {name: whole[id(value)] if id(value) in whole else value.detach().cpu().clone() for name, value in shapes.items()}


@torch.no_grad()
def write_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies whole weights into each rank's parts, and into the master copy.

    Args:
        module: Trained by an engine, or only measured.
        weights: The same on all ranks.
    """
    from deepspeed.utils import safe_set_full_fp32_param

    for name, parameter in module.named_parameters():
        with _together(parameter, is_changed=True):
            parameter.copy_(weights[name])
        if _is_trained(parameter):
            safe_set_full_fp32_param(parameter, weights[name].to(parameter.device, torch.float32))
    for name, buffer in module.named_buffers():
        if name in weights:
            buffer.copy_(weights[name])


def read_optimizer(module: nn.Module, optimizer: Any, names: list[list[str]], keep: bool) -> dict[str, Any]:
    """The optimizer's state by parameter name, as a process without engine would have it. All ranks must ask.

    Args:
        module: What is trained.
        optimizer: DeepSpeed's.
        names: Of the parameters of each group.
        keep: Whether this rank wants it; an empty dict otherwise.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    _link(optimizer)
    state: dict[str, dict[str, Any]] = {}
    parameters = dict(module.named_parameters())
    for part, tile in flat_parts(module, optimizer, names):
        own = optimizer.optimizer.state[part]
        split = [key for key, value in own.items() if isinstance(value, Tensor) and value.shape == part.shape]
        rest = {key: value if isinstance(value, Tensor) else torch.tensor(float(value)) for key, value in own.items() if key not in split}
        for name in tile:
            full: dict[str, Any] = {key: safe_get_full_optimizer_state(parameters[name], key) for key in split}
            if keep:
                state[name] = {key: value.detach().cpu().clone() for key, value in full.items()}
                state[name] |= {key: value.clone().cpu() for key, value in rest.items()}
    if not keep:
        return {}
    groups = zip(optimizer.optimizer.param_groups, names, strict=True)
    return {"state": state, "param_groups": [{**group, "params": own} for group, own in groups]}


@torch.no_grad()
def write_optimizer(module: nn.Module, optimizer: Any, state: Mapping[str, Any]) -> None:
    """Copies a state by name into each rank's parts.

    Args:
        module: What is trained.
        optimizer: DeepSpeed's.
        state: `state` and `param_groups`, the same on all ranks.
    """
    from deepspeed.utils import safe_set_full_optimizer_state

    parameters = dict(module.named_parameters())
    for part, tile in flat_parts(module, optimizer, [group["params"] for group in state["param_groups"]]):
        sample: Mapping[str, Any] = next((state["state"][name] for name in tile if name in state["state"]), {})
        own = optimizer.optimizer.state[part]
        for key, value in sample.items():
            if value.ndim > 0:
                own[key] = torch.zeros_like(part)
            else:
                own[key] = int(value) if is_kernel(optimizer.optimizer) else value.clone()
    _link(optimizer)
    for name, values in state["state"].items():
        for key, value in values.items():
            if value.ndim > 0:
                safe_set_full_optimizer_state(parameters[name], value.to(parameters[name].device, torch.float32), key)
    for group, saved in zip(optimizer.optimizer.param_groups, state["param_groups"], strict=True):
        group.update({key: value for key, value in saved.items() if key in group and key != "params"})


def flat_parts(module: nn.Module, optimizer: Any, names: list[list[str]]) -> Iterator[tuple[Tensor, list[str]]]:
    """This rank's parts of parameters, laid out flat, which the inner optimizer steps one by one, with the names of those parameters.

    Stages 1 and 2 have one for each group. Stage 3 cuts a group of more than 10^9 elements on a rank (`sub_group_size`) into several.

    Args:
        module: What is trained.
        optimizer: DeepSpeed's.
        names: Of the parameters of each group.
    """
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        return zip(optimizer.single_partition_of_fp32_groups, names, strict=True)
    name_of = {id(parameter): name for name, parameter in module.named_parameters()}
    tiles = [[name_of[id(parameter)] for parameter in tile] for tile in optimizer.fp16_groups]
    return zip(optimizer.fp32_partitioned_groups_flat, tiles, strict=True)


def _link(optimizer: Any) -> None:
    """Lets stages 1 and 2 find the state of every group: left alone, they look after the first group's step, when others have none."""
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        optimizer._link_all_hp_params()
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def _is_trained(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad and (hasattr(parameter, "_hp_mapping") or hasattr(parameter, "_z3_optimizer"))


def _together(parameter: nn.Parameter, is_changed: bool = False) -> Any:
    """The parameter is whole inside; what rank 0 makes of it there is everybody's if it is changed."""
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if is_changed else None, enabled=is_partitioned(parameter))
