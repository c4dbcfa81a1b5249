"""Counts against dictionaries of tuples."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.data.ngrams import NONE, Counts, count, merge

VOCAB, BEGIN = 6, 0


def as_tuples(counts: Counts) -> dict[tuple[int, ...], int]:
    """Every n-gram that occurs, spelt out by walking from each row to its context."""
    found = {}
    for level in range(1, counts.order + 1):
        for row, number in enumerate(counts.counts[level - 1].tolist()):
            gram, at = [], row
            for k in range(level, 0, -1):
                key = int(counts.keys[k - 1][at])
                gram.insert(0, key % counts.vocab_size)
                at = key // counts.vocab_size
            if number:
                found[tuple(gram)] = number
    return found


def events(row: list[int], order: int, begin: int = BEGIN) -> list[tuple[tuple[int, ...], int]]:
    """(context, token) of each token but the first; a context begins with the latest beginning of a document."""
    found = []
    for j in range(1, len(row)):
        start = max([i for i in range(j) if row[i] == begin] + [0, j - order + 1])
        found.append((tuple(row[start:j]), row[j]))
    return found


def grams(rows: list[list[int]], order: int, begin: int = BEGIN) -> Counter[tuple[int, ...]]:
    """Every n-gram of 1 to `order` tokens whose last token is an event."""
    found: Counter[tuple[int, ...]] = Counter()
    for row in rows:
        for context, token in events(row, order, begin):
            found.update((*context[len(context) - k :], token) for k in range(min(order, len(context) + 1)))
    return found


ROWS = st.integers(2, 25).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=width, max_size=width), min_size=1, max_size=4)
)


@given(rows=ROWS, order=st.integers(1, 5), begin=st.sampled_from([BEGIN, NONE]))
def test_every_ngram_is_counted(rows: list[list[int]], order: int, begin: int) -> None:
    counts = count(np.array(rows), order, VOCAB, begin)
    assert as_tuples(counts) == dict(grams(rows, order, begin))
    assert all((np.diff(keys) > 0).all() for keys in counts.keys), "tables are sorted, and have no row twice"
    assert as_tuples(counts.cut(1)) == dict(grams(rows, 1, begin))


@given(one=ROWS, other=ROWS, order=st.integers(1, 5))
def test_counts_add_up_in_any_order(one: list[list[int]], other: list[list[int]], order: int) -> None:
    a, b = (count(np.array(rows), order, VOCAB, BEGIN) for rows in (one, other))
    assert as_tuples(merge(a, b)) == dict(grams(one, order) + grams(other, order))
    for left, right in zip(merge(a, b).keys + merge(a, b).counts, merge(b, a).keys + merge(b, a).counts, strict=True):
        assert (left == right).all()


@given(rows=ROWS, skip=st.integers(0, 4))
def test_what_is_skipped_is_a_context_only(rows: list[list[int]], skip: int) -> None:
    counts = as_tuples(count(np.array(rows), 3, VOCAB, BEGIN, skip))
    wanted: Counter[tuple[int, ...]] = Counter()
    for row in rows:
        for context, token in events(row, 3)[skip:]:
            wanted.update((*context[len(context) - k :], token) for k in range(min(3, len(context) + 1)))
    assert counts == dict(wanted)


def test_a_large_vocabulary_does_not_overflow() -> None:
    """Five tokens of 17 bits do not fit into 64 bits side by side."""
    rows = np.random.default_rng(0).integers(100_000, 131_072, (4, 50))
    counts = as_tuples(count(rows, 5, 131_072))
    assert counts == dict(grams(rows.tolist(), 5, NONE))


@pytest.mark.parametrize("order", [2, 3, 5])
def test_suffixes_and_first_tokens(order: int) -> None:
    counts = count(np.random.default_rng(1).integers(0, VOCAB, (3, 60)), order, VOCAB, BEGIN)
    spelt: list[list[tuple[int, ...]]] = []
    for level in range(1, order + 1):
        parents = counts.parents(level)
        spelt.append([(*(spelt[-1][p] if spelt else ()), int(key % VOCAB)) for p, key in zip(parents, counts.keys[level - 1], strict=True)])
    for level, suffixes in enumerate(counts.suffixes(), start=2):
        assert [spelt[level - 2][row] for row in suffixes] == [gram[1:] for gram in spelt[level - 1]]
    for level, firsts in enumerate(counts.first_tokens(), start=1):
        assert firsts.tolist() == [gram[0] for gram in spelt[level - 1]]
