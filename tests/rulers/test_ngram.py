"""The n-gram anchors against dictionaries and loops."""

from __future__ import annotations

from collections import Counter, defaultdict
from math import log2

import numpy as np
import pytest

from lmlab.data.batch import Example
from lmlab.rulers.ngram import anchors, bigram_probs, count

VOCAB = 7


def block(seed: int, length: int = 40) -> Example:
    ids = np.random.default_rng(seed).integers(0, VOCAB - 1, length)  # the last token never occurs
    return Example(seed, seed, ids, np.zeros(length, np.int64), length)


def slow_probs(train: list[Example]) -> tuple[dict[int, float], dict[tuple[int, int], float]]:
    unigram = Counter(range(VOCAB))
    pairs: dict[int, Counter[int]] = defaultdict(Counter)
    for example in train:
        for a, b in zip(example.input_ids.tolist(), example.input_ids.tolist()[1:], strict=False):
            unigram[b] += 1
            pairs[a][b] += 1
    p1 = {w: c / sum(unigram.values()) for w, c in unigram.items()}
    p2 = {}
    for a in range(VOCAB):
        kinds, total = len(pairs[a]), sum(pairs[a].values())
        for b in range(VOCAB):
            p2[a, b] = (pairs[a][b] + kinds * p1[b]) / (total + kinds) if total else p1[b]
    return p1, p2


def test_probabilities_are_those_of_a_plain_loop_and_add_up_to_one() -> None:
    train = [block(n) for n in range(3)]
    p1, p2 = slow_probs(train)
    counts = count(train, VOCAB)
    assert counts.unigram.tolist() == pytest.approx([p1[w] for w in range(VOCAB)])
    previous, following = np.repeat(np.arange(VOCAB), VOCAB), np.tile(np.arange(VOCAB), VOCAB)
    probs = bigram_probs(counts, previous, following)
    assert probs.tolist() == pytest.approx([p2[a, b] for a, b in zip(previous.tolist(), following.tolist(), strict=True)])
    assert probs.reshape(VOCAB, VOCAB).sum(1).tolist() == pytest.approx([1.0] * VOCAB)


def test_bits_per_byte_divide_by_the_bytes_of_the_predicted_tokens() -> None:
    train, held_out = [block(n) for n in range(3)], [block(9), block(10)]
    token_bytes = np.arange(1, VOCAB + 1)
    p1, p2 = slow_probs(train)
    pairs = [(a, b) for e in held_out for a, b in zip(e.input_ids.tolist(), e.input_ids.tolist()[1:], strict=False)]
    num_bytes = sum(b + 1 for _, b in pairs)
    got = anchors(train, held_out, token_bytes)
    assert got.uniform == pytest.approx(len(pairs) * log2(VOCAB) / num_bytes)
    assert got.unigram == pytest.approx(sum(-log2(p1[b]) for _, b in pairs) / num_bytes)
    assert got.bigram == pytest.approx(sum(-log2(p2[a, b]) for a, b in pairs) / num_bytes)


def test_a_bigram_beats_a_unigram_on_text_with_an_order() -> None:
    ids = np.tile(np.arange(5), 20)
    ordered = Example(0, 0, ids, np.zeros(100, np.int64), 100)
    got = anchors([ordered], [ordered], np.ones(VOCAB, np.int64))
    assert got.bigram < 0.3 * got.unigram < got.uniform
