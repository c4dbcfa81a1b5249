"""The state of an optimizer, by number as torch writes it, or by name as sharded modules need it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from lmlab.errors import CheckpointError


def group_names(module: nn.Module, optimizer: Optimizer) -> list[list[str]]:
    """Names of the parameters of each group.

    Args:
        module: Has them.
        optimizer: Of its parameters.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def numbered(state: dict[str, Any]) -> dict[str, Any]:
    """From names to numbers: parameters are counted through the groups, which is how a single process writes them.

    Args:
        state: `state` and `param_groups` by name; empty on ranks that hold nothing.
    """
    if not state:
        return state
    numbers: dict[str, int] = {}
    groups = [{**group, "params": [numbers.setdefault(name, len(numbers)) for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {numbers[name]: values for name, values in state["state"].items()}, "param_groups": groups}


def names_by_number(state: dict[str, Any], names: list[list[str]]) -> dict[int, str]:
    """Which parameter each number of a state stands for.

    Args:
        state: As torch writes it.
        names: Of the parameters of each group of this run.

    Raises:
        CheckpointError: If the groups differ in number or size.
    """
    if [len(group["params"]) for group in state["param_groups"]] != [len(group) for group in names]:
        why = "groups follow from names and settings of the optimizer, which must be those of the run"
        raise CheckpointError("the optimizer's groups are not those of the checkpoint", where="optimizer", why=why)
    return {
        number: name
        for group, here in zip(state["param_groups"], names, strict=True)
        for number, name in zip(group["params"], here, strict=True)
    }


def named(state: dict[str, Any], names: list[list[str]]) -> dict[str, Any]:
    """From numbers to names.

    Args:
        state: As torch writes it.
        names: Of the parameters of each group of this run.

    Raises:
        CheckpointError: If the groups differ in number or size.
    """
    of = names_by_number(state, names)
    groups = [{**group, "params": here} for group, here in zip(state["param_groups"], names, strict=True)]
    return {"state": {of[number]: values for number, values in state["state"].items()}, "param_groups": groups}
