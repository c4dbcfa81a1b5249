"""Decoding: the filters against brute force, the frequencies against the probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.decoding import DecodingConfig, decode, next_tokens, restrict
from lmlab.errors import ConfigError


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), top_k=st.integers(0, 12), top_p=st.floats(0.05, 1.0), temperature=st.floats(0.2, 3.0))
def test_the_filters_keep_what_a_plain_loop_keeps(seed: int, top_k: int, top_p: float, temperature: float) -> None:
    logits = torch.randn(1, 10, generator=torch.Generator().manual_seed(seed))
    kept = set(
        torch.isfinite(restrict(logits, DecodingConfig(top_k=top_k, top_p=top_p, temperature=temperature)))[0].nonzero().flatten().tolist()
    )
    scaled = (logits[0] / temperature).tolist()
    order = sorted(range(10), key=lambda i: -scaled[i])[: top_k or 10]
    probs = torch.tensor([scaled[i] for i in order]).softmax(0).tolist()
    expected, mass = set(), 0.0
    for index, prob in zip(order, probs, strict=True):
        if mass < top_p - 1e-6:
            expected.add(index)
        mass += prob
    assert kept == expected or abs(mass - 1) > 1e-3 or kept ^ expected <= {order[len(expected) - 1]}  # a tie with top_p may fall either way


def test_draws_follow_the_probabilities() -> None:
    probs = torch.tensor([0.5, 0.3, 0.2])
    config, generator = DecodingConfig(temperature=1.0), torch.Generator().manual_seed(0)
    draws = next_tokens(probs.log().expand(20000, 3), config, generator)
    share = torch.bincount(draws, minlength=3) / 20000
    assert (share - probs).abs().max() < 5 * (0.25 / 20000) ** 0.5


def test_each_row_ends_at_its_own_stop() -> None:
    script = torch.tensor([[4, 5, 9, 6], [7, 9, 8, 8], [4, 4, 4, 4]])
    step = iter(range(4))

    def logits_of(tokens: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(script[:, next(step)], 10).float()

    rows = decode(logits_of, torch.zeros(3, 2, dtype=torch.long), DecodingConfig(max_new_tokens=4, temperature=0), stop_ids={9})
    assert rows == [[4, 5], [7], [4, 4, 4, 4]]


def test_impossible_settings_are_refused() -> None:
    for bad in ({"top_p": 0.0}, {"temperature": -1.0}, {"max_new_tokens": 0}, {"top_k": -1}):
        with pytest.raises(ConfigError):
            DecodingConfig(**bad)  # type: ignore[arg-type]
