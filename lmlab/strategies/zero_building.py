"""Parameters that DeepSpeed's stage 3 takes apart while a network is still being built."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lmlab.nn.sharded import is_partitioned

KEPT_AS: dict[str, torch.dtype] = {
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
    "16-mixed": torch.float16,
    "16-true": torch.float16,
}
"""In what an engine keeps weights at each precision; in float32 at others."""


def take_apart(block: nn.Module, config: dict[str, Any], precision: str) -> None:
    """Leaves each rank its part of a block's parameters. All ranks must ask, with the same weights.

    Args:
        block: Its weights are drawn.
        config: DeepSpeed's, of stage 3.
        precision: Lightning's name of it.
    """
    import deepspeed

    _narrow(block, precision)
    deepspeed.zero.Init(module=block, config_dict_or_path=config)


def bring_along(module: nn.Module, device: torch.device, precision: str) -> None:
    """Makes of what is whole yet what an engine would make of it, which it leaves to others once anything was taken apart.

    Args:
        module: An objective whose network is built.
        device: Of this rank.
        precision: Lightning's name of it.
    """
    if any(is_partitioned(parameter) for parameter in module.parameters()):
        module.to(device)
        _narrow(module, precision)


@torch.no_grad()
def _narrow(module: nn.Module, precision: str) -> None:
    dtype = KEPT_AS.get(precision, torch.float32)
    for parameter in module.parameters():
        if not is_partitioned(parameter):
            parameter.data = parameter.data.to(dtype)
