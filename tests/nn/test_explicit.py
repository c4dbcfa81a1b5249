"""Attention spelled out against torch's, in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lmlab.nn.explicit import attend_explicitly, preferable
from lmlab.nn.mask import causal_scores

B, T, H, K = 2, 5, 4, 8


def _drawn(heads: int) -> torch.Tensor:
    return torch.randn(B, T, heads, K, generator=torch.Generator().manual_seed(heads)).requires_grad_()


def _masks() -> dict[str, torch.Tensor | None]:
    padded = torch.zeros(B, 1, 1, T)
    padded[1, ..., 3:] = -torch.inf
    blind = torch.zeros(B, 1, T, T)
    blind[0, 0, 2] = -torch.inf
    bias = torch.randn(1, H, T, T, generator=torch.Generator().manual_seed(9))
    return {"none": None, "causal": causal_scores(T, torch.float32, torch.device("cpu")), "padded": padded, "blind": blind, "bias": bias}


@pytest.mark.parametrize("name", ["none", "causal", "padded", "blind", "bias"])
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_equals_torch(name: str, groups: int, scale: float | None) -> None:
    """Values and gradients; a query that may attend nothing gets zero and spoils nothing."""
    inputs, added = [_drawn(H), _drawn(groups), _drawn(groups) * 2], _masks()[name]
    mine = attend_explicitly(*inputs, added, scale=scale, dropout=0.0)
    moved = [x.transpose(1, 2) for x in inputs]
    theirs = F.scaled_dot_product_attention(*moved, attn_mask=added, scale=scale, enable_gqa=groups != H).transpose(1, 2)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(torch.autograd.grad(mine.sin().sum(), inputs), torch.autograd.grad(theirs.sin().sum(), inputs))


def test_when() -> None:
    """On a CPU in half precision, unless rows are long."""
    short, long = torch.empty(1, 4, 1, 2), torch.empty(1, 2000, 1, 2)
    assert preferable(short.bfloat16(), short.bfloat16())
    assert not preferable(short, short)
    assert not preferable(short.bfloat16(), long.bfloat16())
    assert not preferable(short.bfloat16().to("meta"), short.bfloat16().to("meta"))
