"""Decoding: the filters against brute force, the frequencies against the probabilities."""

from __future__ import annotations

import dataclasses
import math
from itertools import combinations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lmlab.decoding import DecodingConfig, decode, next_tokens, restrict, row_generator
from lmlab.errors import ConfigError


def smallest_nucleus(probs: list[float], top_p: float) -> set[int]:
    """By its definition: of all sets of tokens whose probability is at least `top_p`, the smallest; of these, the likeliest."""
    subsets = [set(s) for size in range(1, len(probs) + 1) for s in combinations(range(len(probs)), size)]
    enough = [s for s in subsets if sum(probs[i] for i in s) >= top_p] or [set(range(len(probs)))]
    return max(enough, key=lambda s: (-len(s), sum(probs[i] for i in s)))


def on_the_edge(probs: list[float], top_p: float) -> bool:
    """Whether rounding decides: some of the likeliest tokens have `top_p` together, but for the precision of float32."""
    return any(abs(sum(sorted(probs, reverse=True)[:n]) - top_p) < 1e-5 for n in range(1, len(probs) + 1))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), top_k=st.integers(0, 8), top_p=st.floats(0.05, 0.999), temperature=st.floats(0.2, 3.0))
def test_the_filters_keep_the_smallest_sets_there_are(seed: int, top_k: int, top_p: float, temperature: float) -> None:
    logits = torch.randn(1, 7, generator=torch.Generator().manual_seed(seed))
    config = DecodingConfig(top_k=top_k, top_p=top_p, temperature=temperature)
    restricted = restrict(logits, config)[0]
    scaled = [x / temperature for x in logits[0].tolist()]
    likeliest = sorted(range(7), key=lambda i: -scaled[i])[: top_k or 7]
    total = sum(math.exp(scaled[i]) for i in likeliest)
    probs = [math.exp(scaled[i]) / total for i in likeliest]
    assume(not on_the_edge(probs, top_p))
    expected = {likeliest[i] for i in smallest_nucleus(probs, top_p)}
    assert set(restricted.isfinite().nonzero().flatten().tolist()) == expected
    for index in expected:
        assert restricted[index].item() == pytest.approx(scaled[index], rel=1e-5)


def test_the_token_that_crosses_top_p_is_kept() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    for top_p, kept in ((0.4, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 3)):
        assert restrict(logits, DecodingConfig(temperature=1.0, top_p=top_p)).isfinite().sum() == kept


def test_draws_follow_the_probabilities() -> None:
    probs = torch.tensor([0.5, 0.3, 0.2])
    config, generator = DecodingConfig(temperature=1.0), torch.Generator().manual_seed(0)
    draws = next_tokens(probs.log().expand(20000, 3), config, [generator] * 20000)
    share = torch.bincount(draws, minlength=3) / 20000
    assert (share - probs).abs().max() < 5 * (0.25 / 20000) ** 0.5


def test_first_draws_follow_the_probabilities_over_prompts_and_over_seeds() -> None:
    """A generator for each row is no generator for all draws: that they are independent from row to row has to be seen."""
    probs, config = torch.tensor([0.5, 0.3, 0.2]), DecodingConfig(temperature=1.0)
    for generators in ([row_generator(0, [i, 5]) for i in range(2000)], [row_generator(seed, [5]) for seed in range(2000)]):
        draws = next_tokens(probs.log().expand(2000, 3), config, generators)
        assert (torch.bincount(draws, minlength=3) / 2000 - probs).abs().max() < 5 * (0.25 / 2000) ** 0.5
        pairs = torch.bincount(3 * draws[:-1] + draws[1:], minlength=9) / 1999
        assert (pairs.view(3, 3) - probs[:, None] * probs).abs().max() < 5 * (0.25 / 1999) ** 0.5


def test_a_row_is_written_the_same_in_any_company() -> None:
    """Seed and content of the row decide, not its place in the batch."""
    table = torch.randn(10, 10, generator=torch.Generator().manual_seed(1))
    config = DecodingConfig(temperature=1.0, max_new_tokens=12, seed=3)

    def write(rows: list[list[int]], config: DecodingConfig) -> list[list[int]]:
        return decode(lambda tokens: table[tokens[:, -1]], torch.tensor([[row[-1]] for row in rows]), rows, config, stop_ids={9})

    rows = [[1, 2], [4, 2], [7], [1, 2, 2]]
    alone = [write([row], config)[0] for row in rows]
    assert write(rows, config) == alone
    assert write(rows[::-1], config) == alone[::-1]
    assert len({tuple(row) for row in alone}) == len(rows), "rows with the same last token, and so the same logits, are drawn apart"
    assert write(rows, dataclasses.replace(config, seed=4)) != alone


def test_each_row_ends_at_its_own_stop() -> None:
    script = torch.tensor([[4, 5, 9, 6], [7, 9, 8, 8], [4, 4, 4, 4]])
    step = iter(range(4))

    def logits_of(tokens: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(script[:, next(step)], 10).float()

    config = DecodingConfig(max_new_tokens=4, temperature=0)
    rows = decode(logits_of, torch.zeros(3, 2, dtype=torch.long), [[0, 0]] * 3, config, stop_ids={9})
    assert rows == [[4, 5], [7], [4, 4, 4, 4]]


def test_impossible_settings_are_refused() -> None:
    for bad in ({"top_p": 0.0}, {"temperature": -1.0}, {"max_new_tokens": 0}, {"top_k": -1}):
        with pytest.raises(ConfigError):
            DecodingConfig(**bad)  # type: ignore[arg-type]
