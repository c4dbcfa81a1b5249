"""Counts of blocks against those of the text they were cut from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmlab.nn import ngram_table
from lmlab.nn.ngram_table import NGramTable
from tests.data.test_ngrams import BEGIN, VOCAB, as_tuples, grams


def stream(num_blocks: int, length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, num_blocks * length + 1).tolist()


def block(text: list[int], index: int, length: int) -> list[int]:
    return text[index * length : (index + 1) * length + 1]


def runs(indices: list[int]) -> list[list[int]]:
    """Neighbouring blocks together."""
    found: list[list[int]] = []
    for index in sorted(indices):
        if found and found[-1][-1] == index - 1:
            found[-1].append(index)
        else:
            found.append([index])
    return found


@given(
    order=st.integers(1, 5),
    extra=st.integers(0, 7),
    arrivals=st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=4), min_size=1, max_size=8),
    looks=st.sampled_from([0, 1]),
)
def test_blocks_in_any_order_are_counted_once_and_across_their_edges(order: int, extra: int, arrivals: list[list[int]], looks: int) -> None:
    """As if each stretch of neighbouring blocks were one row, whatever comes when, again, or is asked for on the way."""
    length = order + extra
    text, table = stream(9, length), NGramTable(order, VOCAB, BEGIN)
    for batch in arrivals:
        table.add(torch.tensor(batch), torch.tensor([block(text, i, length) for i in batch]))
        if looks:
            table.counts()
    seen = runs(sorted({index for batch in arrivals for index in batch}))
    assert as_tuples(table.counts()) == dict(grams([text[run[0] * length : (run[-1] + 1) * length + 1] for run in seen], order))


def test_how_long_blocks_are_and_how_they_are_gathered_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    text = stream(12, 10)
    found = []
    for length, pending in ((5, 1), (10, 10**6), (60, 40)):
        monkeypatch.setattr(ngram_table, "PENDING_TOKENS", pending)
        table = NGramTable(5, VOCAB, BEGIN)
        for index in reversed(range(len(text) // length)):
            table.add(torch.tensor([index]), torch.tensor([block(text, index, length)]))
        found.append(as_tuples(table.counts()))
    assert found[0] == found[1] == found[2] == dict(grams([text], 5))


@pytest.mark.parametrize("order", [1, 2, 5])
def test_the_state_is_all_there_is(order: int) -> None:
    """Saved before everything was sorted in, loaded into an empty table, and carried on."""
    text, length = stream(8, 10), 10
    table, other = NGramTable(order, VOCAB, BEGIN), NGramTable(order, VOCAB, BEGIN)
    blocks = torch.tensor([block(text, i, length) for i in range(8)])
    table.add(torch.tensor([0, 3, 4]), blocks[[0, 3, 4]])
    other.load_state_dict(table.state_dict())
    for each in (table, other):
        each.add(torch.tensor([4, 1, 2]), blocks[[4, 1, 2]])
    assert as_tuples(other.counts()) == as_tuples(table.counts()) == dict(grams([text[: 5 * length + 1]], order))
    mine, theirs = table.state_dict(), other.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine) and all(value.dtype == torch.long for value in mine.values())


def test_a_model_is_made_anew_when_something_is_added_and_only_then() -> None:
    text, table = stream(3, 10), NGramTable(2, VOCAB, BEGIN)
    table.add(torch.tensor([0]), torch.tensor([block(text, 0, 10)]))
    first = table.smoothed("kneser_ney")
    table.add(torch.tensor([0]), torch.tensor([block(text, 0, 10)]))
    assert table.smoothed("kneser_ney") is first
    table.add(torch.tensor([1]), torch.tensor([block(text, 1, 10)]))
    assert table.smoothed("kneser_ney") is not first
