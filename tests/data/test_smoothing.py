"""Smoothed probabilities against their definitions, written with dictionaries and recursion."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.data.ngrams import count
from lmlab.data.smoothing import FALLBACK_DISCOUNTS, Smoothing, smooth
from tests.data.test_ngrams import BEGIN, ROWS, VOCAB, grams

EXACT = 1e-12  # relative: sums and products of a few float64
SMOOTHINGS: list[Smoothing] = ["witten_bell", "kneser_ney"]
Gram = tuple[int, ...]


class Definition:
    """P(w | h) straight from the equations; slow."""

    def __init__(self, rows: list[list[int]], order: int, smoothing: Smoothing) -> None:
        self.order, self.smoothing = order, smoothing
        raw = grams(rows, order)
        before: dict[Gram, set[int]] = defaultdict(set)
        for gram in raw:
            before[gram[1:]].add(gram[0])
        self.numbers: list[Counter[Gram]] = []
        for k in range(1, order + 1):
            of_level = {gram: number for gram, number in raw.items() if len(gram) == k}
            plain = smoothing == "witten_bell" or k == order
            self.numbers.append(Counter({g: n if plain or (k > 1 and g[0] == BEGIN) else len(before[g]) for g, n in of_level.items()}))

    def discounts(self, k: int) -> tuple[float, ...]:
        times = Counter(self.numbers[k - 1].values())
        n1, n2, n3, n4 = (times[i] for i in (1, 2, 3, 4))
        if not (n1 and n2 and n3 and n4):
            return FALLBACK_DISCOUNTS
        y = n1 / (n1 + 2 * n2)
        found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return found if 0 < found[0] < 1 and 0 < found[1] < 2 and 0 < found[2] < 3 else FALLBACK_DISCOUNTS

    def probability(self, context: Gram, token: int) -> float:
        latest = max([i for i, t in enumerate(context) if t == BEGIN], default=0)
        context = context[latest:]
        return self._level(min(self.order, len(context) + 1), context, token)

    def _level(self, k: int, context: Gram, token: int) -> float:
        if k == 0:
            return 1 / VOCAB
        numbers, history = self.numbers[k - 1], context[len(context) - (k - 1) :]
        after = [numbers[(*history, w)] for w in range(VOCAB) if numbers[(*history, w)]]
        lower = self._level(k - 1, context, token)
        if not after:
            return lower
        if self.smoothing == "witten_bell":
            return (numbers[(*history, token)] + len(after) * lower) / (sum(after) + len(after))
        d = (0.0, *self.discounts(k))
        kept = max(numbers[(*history, token)] - d[min(numbers[(*history, token)], 3)], 0.0)
        return (kept + sum(d[min(n, 3)] for n in after) * lower) / sum(after)


def check(rows: list[list[int]], order: int, smoothing: Smoothing, contexts: list[Gram]) -> None:
    model, definition = smooth(count(np.array(rows), order, VOCAB, BEGIN), smoothing), Definition(rows, order, smoothing)
    for context in contexts:
        wanted = [definition.probability(context, token) for token in range(VOCAB)]
        got = model.distributions(np.array([context]))[0, -1]
        assert got.tolist() == pytest.approx(wanted, rel=EXACT)
        assert got.sum() == pytest.approx(1.0, rel=EXACT) and got.min() > 0
        one_by_one = model.probabilities(np.array([[*context, token] for token in range(VOCAB)]))[:, -1]
        assert one_by_one.tolist() == pytest.approx(wanted, rel=EXACT)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@given(rows=ROWS, contexts=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=7).map(tuple), min_size=1, max_size=5))
def test_every_probability_is_the_defined_one(smoothing: Smoothing, order: int, rows: list[list[int]], contexts: list[Gram]) -> None:
    check(rows, order, smoothing, contexts)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_it_holds_where_discounts_are_estimated(smoothing: Smoothing, order: int) -> None:
    """Every context of up to three tokens, seen or not, on a text that is large enough."""
    generator = np.random.default_rng(0)
    rows = [row.tolist() for row in generator.choice(VOCAB - 1, p=[0.05, 0.5, 0.25, 0.15, 0.05], size=(12, 40))]  # the last never occurs
    used = [Definition(rows, order, "kneser_ney").discounts(k) for k in range(2, order + 1)]
    assert order < 3 or any(d != FALLBACK_DISCOUNTS for d in used)
    contexts = [context for size in (1, 2, 3) for context in product(range(VOCAB), repeat=size)]
    check(rows, order, smoothing, contexts[:: 1 if order < 5 else 3])


def test_a_text_is_better_predicted_by_more_context() -> None:
    rows = np.tile(np.array([[1, 2, 3, 1, 2, 4, 1, 3, 2, 5]]), (3, 6))
    losses = [-np.log(smooth(count(rows, order, VOCAB, BEGIN), "kneser_ney").probabilities(rows)).mean() for order in (1, 2, 3)]
    assert losses[0] > 1.5 * losses[1] > 2 * losses[2]


def test_nothing_counted_is_the_uniform_distribution() -> None:
    for smoothing, order in product(SMOOTHINGS, (1, 2, 5)):
        model = smooth(count(np.zeros((0, 9), np.int64), order, VOCAB, BEGIN), smoothing)
        assert model.distributions(np.array([[1, 2, 3]])) == pytest.approx(1 / VOCAB)
