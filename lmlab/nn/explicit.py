"""Attention spelled out as two matrix products and a softmax, for CPUs in half precision.

There, torch's fused kernel is slow in the backward pass: at 128 tokens the whole of it takes three times as long as this, at 1024 still
half as long again. In float32, and for rows so long that their scores would fill the memory, the fused kernel is the better one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
LONGEST = 1024
"""Tokens up to which scores are kept: a layer's take T/K times the room of its queries."""


def preferable(query: Tensor, key: Tensor) -> bool:
    """Whether to attend this way.

    Args:
        query: (B, T, H, K).
        key: (B, S, G, K).
    """
    return query.device.type == "cpu" and query.dtype in HALF and max(query.shape[1], key.shape[1]) <= LONGEST


def attend_explicitly(query: Tensor, key: Tensor, value: Tensor, scores: Tensor | None, *, scale: float | None, dropout: float) -> Tensor:
    """Mixes values by the softmax of scores.

    Args:
        query: (B, T, H, K).
        key: (B, S, G, K), where G divides H.
        value: The same shape.
        scores: To add to the products, broadcastable to (B, H, T, S); -inf where attention is forbidden.
        scale: Factor on the products; None is 1/sqrt(K).
        dropout: Probability that a weight is dropped.

    Returns:
        (B, T, H, K); zero where a query may attend nothing.
    """
    shared = query.shape[2] // key.shape[2]
    if shared > 1:
        key, value = key.repeat_interleave(shared, dim=2), value.repeat_interleave(shared, dim=2)
    # the queries are scaled, not the products, of which there are more
    products = (query * (query.shape[3] ** -0.5 if scale is None else scale)).transpose(1, 2) @ key.permute(0, 2, 3, 1)  # (B, H, T, S)
    if scores is None:
        return _mix(products, value, dropout).transpose(1, 2)
    blind = (scores == -torch.inf).all(-1, keepdim=True)  # (B, 1, T, 1)
    products += scores.masked_fill(blind, 0.0)  # a softmax over nothing would be NaN, and so would all gradients
    return _mix(products, value, dropout).masked_fill(blind, 0.0).transpose(1, 2)


def _mix(products: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Applies the softmax of (B, H, T, S) products to values: (B, H, T, K)."""
    return F.dropout(products.softmax(-1), dropout) @ value.transpose(1, 2)
