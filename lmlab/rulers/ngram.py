"""Unigram and bigram anchors by plain counting: what a model must beat before it has learnt anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lmlab.data.batch import Example
from lmlab.data.module import CorpusModule
from lmlab.data.views import make_view
from lmlab.objectives.clm import tells_bytes

MAX_COUNTED = 8_000_000
"""Tokens to count: more would cost a large corpus minutes, and make the bigram some hundredths of a bit better."""


class Anchors(NamedTuple):
    """Bits per byte of reference models on the same text.

    Args:
        uniform: Every token alike.
        unigram: Each token by its frequency.
        bigram: Each token by its frequency after the token before it.
    """

    uniform: float
    unigram: float
    bigram: float


class Counts(NamedTuple):
    """Token statistics.

    Args:
        unigram: (V,) float64, probability of each token, none of them 0.
        pairs: Sorted int64 keys previous * V + next of the bigrams seen.
        pair_counts: How often each was seen.
        contexts: (V,) int64, how often each token was seen as the previous one.
        continuations: (V,) int64, how many different tokens followed it.
    """

    unigram: np.ndarray
    pairs: np.ndarray
    pair_counts: np.ndarray
    contexts: np.ndarray
    continuations: np.ndarray


def count(examples: Iterable[Example], vocab_size: int) -> Counts:
    """Counts tokens and pairs in blocks; the last token of a block, its lookahead, is counted as a next token only.

    Args:
        examples: Blocks with one token of lookahead.
        vocab_size: V.
    """
    unigram = np.ones(vocab_size, np.int64)  # add one: nothing is impossible
    keys = []
    for example in examples:
        previous, following = example.input_ids[:-1], example.input_ids[1:]
        unigram += np.bincount(following, minlength=vocab_size)
        keys.append(previous * vocab_size + following)
    pairs, pair_counts = np.unique(np.concatenate(keys), return_counts=True)
    contexts = np.bincount(pairs // vocab_size, weights=pair_counts, minlength=vocab_size).astype(np.int64)
    continuations = np.bincount(pairs // vocab_size, minlength=vocab_size)
    return Counts(unigram / unigram.sum(), pairs, pair_counts, contexts, continuations)


def bigram_probs(counts: Counts, previous: np.ndarray, following: np.ndarray) -> np.ndarray:
    """P(next | previous), interpolated with the unigram by the number of different continuations.

    Args:
        counts: From `count`.
        previous: (n,) int64.
        following: (n,) int64.

    Returns:
        (n,) float64, none of them 0.

    Source: Witten & Bell 1991, "The Zero-Frequency Problem", method C; as interpolation in Chen & Goodman 1998, section 2.4.
    """
    keys = previous * len(counts.unigram) + following
    at = np.minimum(np.searchsorted(counts.pairs, keys), len(counts.pairs) - 1)
    seen = np.where(counts.pairs[at] == keys, counts.pair_counts[at], 0)
    kinds = counts.continuations[previous]
    total = counts.contexts[previous] + kinds
    backed_off = counts.unigram[following]
    return np.where(total > 0, (seen + kinds * backed_off) / np.maximum(total, 1), backed_off)


def anchors_for(data: CorpusModule) -> Anchors | None:
    """The anchors of a run: counted on its training text, read on the very blocks it is validated on.

    Args:
        data: The run's data, prepared.

    Returns:
        None where there is no likelihood to compare: the objective is not fed blocks with one token of lookahead, or its tokens do
        not tell how many bytes they stand for.
    """
    feed, tokenizer = data.feed, data.tokenizer
    if feed is None or tokenizer is None or feed.view != "blocks" or feed.lookahead != 1 or not tells_bytes(tokenizer):
        return None
    train, held_out = data.view("train"), data.evaluation("val")
    # read in longer blocks, which is faster and counts the same pairs, but for a remainder at the end of the text
    wide = feed.length * max(1, min(32, len(train) // 20))
    train = make_view(data.stores["train"], dataclasses.replace(feed, length=wide), tokenizer)
    counted = min(len(train), max(1, MAX_COUNTED // wide))
    blocks = (train[i * len(train) // counted] for i in range(counted))
    return anchors(blocks, [held_out[i] for i in range(len(held_out))], tokenizer.token_bytes())


def anchors(train: Iterable[Example], held_out: Sequence[Example], token_bytes: np.ndarray) -> Anchors:
    """Bits per byte of the reference models on held-out blocks: the same tokens a causal model is asked for.

    Args:
        train: Blocks to count.
        held_out: Blocks to score.
        token_bytes: (V,) bytes of text each token stands for.
    """
    vocab_size = len(token_bytes)
    counts = count(train, vocab_size)
    previous = np.concatenate([e.input_ids[:-1] for e in held_out])
    following = np.concatenate([e.input_ids[1:] for e in held_out])
    num_bytes = token_bytes[following].sum()
    bits = -np.log2(counts.unigram[following]).sum(), -np.log2(bigram_probs(counts, previous, following)).sum()
    return Anchors(float(np.log2(vocab_size) * len(following) / num_bytes), float(bits[0] / num_bytes), float(bits[1] / num_bytes))
