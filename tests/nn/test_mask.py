"""Masks against their definition, pair by pair."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lmlab.nn import mask


@given(length=st.integers(1, 5), past=st.integers(0, 4))
def test_not_ahead(length, past) -> None:
    """Query t stands at place past + t."""
    rule = mask.not_ahead(length, past, torch.device("cpu"))[0, 0]
    assert rule.tolist() == [[s <= past + t for s in range(past + length)] for t in range(length)]


def test_scores_join_all_rules() -> None:
    """Allowed where every rule allows: there the bias, elsewhere -inf."""
    padding = torch.tensor([[True, True, False], [True, True, True]])
    documents = torch.tensor([[0, 0, 0], [0, 1, 1]])
    bias = torch.randn(1, 2, 3, 3)
    joined = mask.scores(
        [mask.unpadded(padding), mask.same_document(documents, documents), mask.not_ahead(3, 0, bias.device)], bias, torch.float32
    )
    assert joined is not None and joined.shape == (2, 2, 3, 3)
    for b in range(2):
        for t in range(3):
            for s in range(3):
                allowed = bool(padding[b, s]) and documents[b, t] == documents[b, s] and s <= t
                assert torch.equal(joined[b, :, t, s], bias[0, :, t, s] if allowed else torch.full((2,), -torch.inf))


def test_scores_of_nothing() -> None:
    """No rule and no bias: no tensor, so that the fast path stays open."""
    assert mask.scores([], None, torch.float32) is None
    bias = torch.randn(1, 1, 2, 2)
    assert torch.equal(mask.scores([], bias, torch.float32), bias)


def test_compute_dtype() -> None:
    """The dtype that a Linear would answer in."""
    x, linear = torch.randn(2, 3), torch.nn.Linear(3, 3)
    assert mask.compute_dtype(x) == linear(x).dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert mask.compute_dtype(x) == linear(x).dtype
