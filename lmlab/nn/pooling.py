"""From the states of a row to one vector."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

Pooling: TypeAlias = Literal["cls", "mean", "last"]
"""The state of the first token, the mean over all tokens, or the state of the last token."""


def pool(states: Tensor, attention_mask: Tensor | None, pooling: Pooling) -> Tensor:
    """One vector for each row; padding has no part in it.

    Args:
        states: (R, T, D).
        attention_mask: (R, T) bool, True at real tokens, padding on the right; None if there is none.
        pooling: How.

    Returns:
        (R, D).
    """
    if pooling == "cls":
        return states[:, 0]
    if attention_mask is None:
        return states.mean(1) if pooling == "mean" else states[:, -1]
    lengths = attention_mask.sum(1)  # (R,)
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), lengths - 1]
    return (states * attention_mask[..., None]).sum(1) / lengths[:, None]
