"""DeepSpeed's own kernels of Adam: compiled when they are first used, and the same to checkpoints as torch's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Adam, Optimizer

from lmlab.errors import ConfigError
from lmlab.optim import OptimizerConfig

KEPT = ("params", "name", "lr", "initial_lr", "weight_decay", "betas", "eps")
"""What a group of such a kernel has of torch's."""


def check_kernels(optimizer: OptimizerConfig) -> None:
    """Refuses what there is no kernel for, and machines that cannot compile one.

    Args:
        optimizer: What the run asks for.

    Raises:
        ConfigError: Then.
    """
    name = optimizer.name.rpartition(".")[2].lower()
    if name not in ("adam", "adamw") or optimizer.options:
        raise ConfigError(
            f"DeepSpeed has no kernel for {optimizer.name}"
            + (f" with {', '.join(optimizer.options)}" if name in ("adam", "adamw") else ""),
            where="trainer.strategy.kernels",
            why="it has them for Adam and AdamW, without further options",
            remedy="set kernels: torch, or -c configs/optim/adamw.yaml",
        )
    compiler = os.environ.get("CXX", "c++")
    missing = [program for program in (compiler, "ninja") if shutil.which(program) is None]
    if missing:
        what, why = "DeepSpeed's kernels cannot be compiled here", f"{' and '.join(missing)} cannot be found"
        raise ConfigError(what, where="trainer.strategy.kernels", why=why, remedy="install a C++ compiler and ninja, or set kernels: torch")


def with_kernels(optimizer: Optimizer, device: torch.device) -> Optimizer:
    """An optimizer of the same groups and settings that steps by DeepSpeed's kernel for a device.

    Args:
        optimizer: torch's Adam or AdamW, without state.
        device: Where its state will be.

    Raises:
        ConfigError: If compilation fails.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    assert isinstance(optimizer, Adam)  # AdamW is one
    groups = [{key: group[key] for key in KEPT if key in group} for group in optimizer.param_groups]
    is_decoupled = bool(optimizer.defaults["decoupled_weight_decay"])
    try:
        if device.type == "cpu":
            return DeepSpeedCPUAdam(groups, adamw_mode=is_decoupled)
        return FusedAdam(groups, adam_w_mode=is_decoupled)
    except (RuntimeError, OSError) as error:
        why = str(error.__cause__ or error).strip().splitlines()[0]
        what, remedy = "DeepSpeed's kernel could not be compiled", "set kernels: torch, which needs no compiler"
        raise ConfigError(what, where="trainer.strategy.kernels", why=why, remedy=remedy) from error


def is_kernel(optimizer: Any) -> bool:
    """Whether an optimizer counts its steps in plain numbers, as these kernels want it, and not in tensors.

    Args:
        optimizer: Any.
    """
    return type(optimizer).__module__.startswith("deepspeed.ops.")


def torch_groups(groups: list[dict[str, Any]], template: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Groups as torch's optimizer would have them by now.

    Args:
        groups: Of a kernel.
        template: Groups of torch's optimizer, as they were at first.
    """
    return [{key: group.get(key, value) for key, value in first.items()} for group, first in zip(groups, template, strict=True)]
