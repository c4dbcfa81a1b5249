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


def test_dropout_zeroes_and_rescales_weights() -> None:
    """Values that are one-hot show the weights themselves: each is dropped, or divided by what is kept."""
    p, length = 0.3, 100
    query, key = (torch.randn(1, length, 1, K, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    value = torch.eye(length)[None, :, None, :]  # (1, S, 1, S)
    weights = ((query[0, :, 0] @ key[0, :, 0].T) / K**0.5).softmax(-1)
    torch.manual_seed(0)
    dropped = attend_explicitly(query, key, value, None, scale=None, dropout=p)[0, :, 0]
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], weights[kept] / (1 - p))
    deviation = (p * (1 - p) / length**2) ** 0.5
    assert abs((~kept).float().mean().item() - p) < 5 * deviation
    assert (~kept).any(0).all() and (~kept).any(1).all()  # no query and no key is spared
    assert not torch.equal(attend_explicitly(query, key, value, None, scale=None, dropout=p)[0, :, 0] != 0, kept)


@pytest.mark.parametrize("name", ["none", "causal", "blind"])
def test_dropout_agrees_with_torch_in_expectation(name: str) -> None:
    """Mean and variance over many draws; the mean is what attention without dropout gives."""
    p, draws = 0.25, 4000
    inputs, added = [_drawn(H)[:1].detach(), _drawn(2)[:1].detach(), 2 * _drawn(2)[:1].detach()], _masks()[name]
    added = None if added is None else added[:1]
    torch.manual_seed(0)
    many = [x.expand(draws, -1, -1, -1) for x in inputs]
    mine = attend_explicitly(*many, added, scale=None, dropout=p)
    moved = [x.transpose(1, 2) for x in many]
    theirs = F.scaled_dot_product_attention(*moved, attn_mask=added, dropout_p=p, enable_gqa=True).transpose(1, 2)
    exact = attend_explicitly(*inputs, added, scale=None, dropout=0.0)[0]
    error = theirs.std(0) / draws**0.5
    assert ((mine.mean(0) - exact).abs() <= 5 * error + 1e-6).all()
    assert ((theirs.mean(0) - exact).abs() <= 5 * error + 1e-6).all()
    torch.testing.assert_close(mine.std(0), theirs.std(0), rtol=0.15, atol=1e-3)  # a deviation over 4000 draws is known to 5 %


def test_when() -> None:
    """On a CPU in half precision, unless rows are long."""
    short, long = torch.empty(1, 4, 1, 2), torch.empty(1, 2000, 1, 2)
    assert preferable(short.bfloat16(), short.bfloat16())
    assert not preferable(short, short)
    assert not preferable(short.bfloat16(), long.bfloat16())
    assert not preferable(short.bfloat16().to("meta"), short.bfloat16().to("meta"))
