"""The n-gram anchors against dictionaries and recursion."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest

from lmlab.data.batch import Example
from lmlab.data.smoothing import Smoothing
from lmlab.rulers.ngram import anchors
from tests.data.test_ngrams import BEGIN, VOCAB
from tests.data.test_smoothing import Definition

MODELS: dict[str, tuple[int, Smoothing]] = {"unigram": (1, "witten_bell"), "bigram": (2, "witten_bell"), "kneser_ney": (5, "kneser_ney")}


def block(ids: np.ndarray, index: int = 0) -> Example:
    return Example(0, index, ids, np.zeros(len(ids), np.int64), len(ids) - 1)


def test_bits_per_byte_are_those_of_the_definitions() -> None:
    """Training blocks are put together again; the tokens that are asked for are divided by their bytes."""
    generator = np.random.default_rng(0)
    text = generator.choice(VOCAB, 91, p=[0.05, 0.45, 0.25, 0.1, 0.1, 0.05])
    train = [block(text[i * 30 : (i + 1) * 30 + 1], i) for i in range(3)]
    held_out = [block(generator.integers(0, VOCAB, 20)) for _ in range(2)]
    token_bytes = np.arange(1, VOCAB + 1)
    num_bytes = sum(int(token_bytes[e.input_ids[1:]].sum()) for e in held_out)
    got = anchors([train[1], train[2], train[0]], held_out, token_bytes, BEGIN)._asdict()
    assert got.pop("uniform") == pytest.approx(2 * 19 * log2(VOCAB) / num_bytes)
    assert got.keys() == MODELS.keys()
    for name, (order, smoothing) in MODELS.items():
        model = Definition([text.tolist()], order, smoothing)
        bits = 0.0
        for row in (e.input_ids.tolist() for e in held_out):
            bits -= sum(log2(model.probability(tuple(row[max(0, j - order + 1) : j]) if order > 1 else (), row[j])) for j in range(1, 20))
        assert got[name] == pytest.approx(bits / num_bytes)


def test_a_bigram_beats_a_unigram_on_text_with_an_order() -> None:
    ordered = block(np.tile(np.arange(1, VOCAB), 20))
    got = anchors([ordered], [ordered], np.ones(VOCAB, np.int64))
    assert got.bigram < 0.3 * got.unigram < got.uniform
    assert got.kneser_ney < 0.3 * got.unigram


def test_blocks_may_be_shorter_than_the_longest_ngram() -> None:
    text = np.tile(np.arange(1, VOCAB), 20)
    short = [block(text[i * 2 : i * 2 + 3], i) for i in range(40)]
    got = anchors(short, short, np.ones(VOCAB, np.int64))
    assert got.kneser_ney < got.unigram
