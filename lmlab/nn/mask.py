"""Which keys a query may attend, decided once per forward and shared by the layers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lmlab.nn.varlen import Segments


class Visibility(NamedTuple):
    """What every attention of a stack is told about who sees whom.

    Args:
        scores: Added to the attention scores, broadcastable to (B, H, T, S): a position bias, and -inf where attention is forbidden.
        causal: Query t sees keys 0..t; only without `scores`, because SDPA is faster when it knows this than when it is masked.
        segments: Set if documents are attended one by one by a variable-length kernel.
    """

    scores: Tensor | None = None
    causal: bool = False
    segments: Segments | None = None


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype projections of `x` come out in, so that shared tables are cast once instead of in every layer."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def unpadded(attention_mask: Tensor) -> Tensor:
    """Gives a padding mask the shape of attention scores.

    Args:
        attention_mask: (B, S) bool, True where a key may be attended; or (B, T, S), for each query separately.

    Returns:
        (B, 1, 1, S) or (B, 1, T, S) bool.
    """
    allowed = attention_mask.bool()
    return allowed[:, None, None, :] if allowed.dim() == 2 else allowed[:, None]


def same_document(query_ids: Tensor, key_ids: Tensor) -> Tensor:
    """Keeps packed documents apart.

    Args:
        query_ids: (B, T) document of each query.
        key_ids: (B, S) document of each key.

    Returns:
        (B, 1, T, S) bool.
    """
    return (query_ids[:, :, None] == key_ids[:, None, :])[:, None]


def not_ahead(length: int, past: int, device: torch.device) -> Tensor:
    """The causal rule as a mask, for when SDPA cannot be told in a word.

    Args:
        length: T, queries; they come after `past` earlier keys.
        past: Keys before the first query.
        device: Where to make it.

    Returns:
        (1, 1, T, past + T) bool.
    """
    return torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)[None, None]


def causal_scores(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The causal rule of a row without a past, to add to attention scores.

    Args:
        length: T.
        dtype: Of queries and keys.
        device: Where to make it.

    Returns:
        (1, 1, T, T): 0 up to the diagonal, -inf above it.
    """
    return torch.full((length, length), -torch.inf, dtype=dtype, device=device).triu_(1)[None, None]


def scores(allowed: list[Tensor], bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Joins rules and position bias into one tensor to add to attention scores.

    Args:
        allowed: bool masks, broadcastable to (B, H, T, S); all must hold.
        bias: (1, H, T, S) to add where attention is allowed.
        dtype: Of queries and keys: SDPA wants the same.

    Returns:
        The sum, or None if nothing is forbidden or added. A boolean mask would do without a bias, but SDPA would turn it into this in
        every layer.
    """
    if not allowed:
        return None if bias is None else bias.to(dtype)
    rule = allowed[0]
    for other in allowed[1:]:
        rule = rule & other
    start = torch.zeros((), dtype=dtype, device=rule.device) if bias is None else bias.to(dtype)
    return torch.where(rule, start, torch.full((), -torch.inf, dtype=dtype, device=rule.device))
