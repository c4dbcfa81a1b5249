"""Packed documents attended one by one, without a mask, by torch's variable-length kernel.

The kernel exists on CUDA for half precision only. It has not been run on a GPU by this project: what is tested, on CPU, is the
bookkeeping around it, with a plain implementation of the same signature in the kernel's place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

HALF = (torch.float16, torch.bfloat16)
kernel = varlen_attn


class Segments(NamedTuple):
    """Where documents begin and end in a batch laid end to end.

    Args:
        bounds: (documents + 1,) int32, from 0 to B * T, ascending.
        longest: An upper bound of a document's tokens; T itself, since the true one would cost a wait for the device.
    """

    bounds: Tensor
    longest: int


def applicable(x: Tensor, dtype: torch.dtype, dropout: float) -> bool:
    """Whether the kernel can be used instead of a mask.

    Args:
        x: The hidden states, for their device.
        dtype: Of queries and keys.
        dropout: Attention dropout in effect; the kernel has none.

    Returns:
        False under `torch.compile` too: the number of documents is data, and would break the graph.
    """
    return x.is_cuda and dtype in HALF and dropout == 0.0 and not torch.compiler.is_compiling()


def segments(document_ids: Tensor) -> Segments:
    """Finds the documents of a packed batch; a row's end ends its last document.

    Args:
        document_ids: (B, T), equal for neighbouring tokens of one document.
    """
    starts = torch.ones_like(document_ids, dtype=torch.bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    end = torch.full((1,), document_ids.numel(), dtype=torch.int32, device=document_ids.device)
    return Segments(torch.cat((starts.flatten().nonzero().flatten().int(), end)), document_ids.shape[1])


def attend_segments(query: Tensor, key: Tensor, value: Tensor, where: Segments, *, causal: bool, scale: float | None) -> Tensor:
    """Attention within each document.

    Args:
        query: (B, T, H, K).
        key: (B, T, G, K), where G divides H.
        value: The same shape.
        where: The documents.
        causal: Whether a token sees only earlier ones.
        scale: Factor on the scores; None is 1/sqrt(K).

    Returns:
        (B, T, H, K).
    """
    bounds, longest = where
    out = kernel(
        query.flatten(0, 1),
        key.flatten(0, 1),
        value.flatten(0, 1),
        bounds,
        bounds,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=query.shape[2] != key.shape[2],
    )
    assert isinstance(out, Tensor)  # a tuple only if asked for auxiliary outputs
    return out.view_as(query)
