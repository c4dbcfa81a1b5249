"""Batches as an objective would be fed, of tokens that mean nothing: only their sizes count."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lmlab.data.batch import Batch, Example, Feed
from lmlab.data.tasks import nested_batch
from lmlab.tokenizer import Tokenizer

SEED = 0


def planned_batch(feed: Feed, tokenizer: Tokenizer, size: int) -> Batch:
    """A micro-batch of full rows of one document each, from the objective's own collator.

    Sentences are as long as fits, so what they take is an upper bound. Blocks of several documents get a mask besides, which is small.

    Args:
        feed: What the objective wants to be fed.
        tokenizer: Gives ordinary tokens.
        size: Examples in it.
    """
    return feed.collate([_example(feed, tokenizer, n) for n in range(size)], SEED)


def planned_batches(feeds: Feed | Mapping[str, Feed], tokenizer: Tokenizer, size: int) -> Batch:
    """The same for one task or several.

    Args:
        feeds: What the objective wants to be fed.
        tokenizer: Gives ordinary tokens.
        size: Examples in it, of each task.
    """
    if isinstance(feeds, Feed):
        return planned_batch(feeds, tokenizer, size)
    return nested_batch({task: planned_batch(feed, tokenizer, size) for task, feed in feeds.items()})


def _example(feed: Feed, tokenizer: Tokenizer, number: int) -> Example:
    ordinary = np.setdiff1d(np.arange(min(tokenizer.vocab_size, 512)), sorted(tokenizer.special_ids))
    drawn = np.random.default_rng(number).choice(ordinary, feed.length + feed.lookahead).astype(np.int64)
    prefix, suffix = np.array(feed.prefix, np.int64), np.array(feed.suffix, np.int64)
    extra: dict[str, object] = {}
    if feed.view == "blocks":
        ids, raw = drawn, len(drawn) - feed.lookahead
    elif feed.view == "sentence_pairs":
        room = feed.length - len(prefix) - 2 * len(suffix)
        first, second = drawn[: room // 2], drawn[room // 2 : room]
        ids, raw = np.concatenate([prefix, first, suffix, second, suffix]), room
        extra = {"second_start": len(prefix) + len(first) + len(suffix), "pair_label": number % 2}
    else:
        room = feed.length - len(prefix) - len(suffix)
        ids, raw = np.concatenate([prefix, drawn[:room], suffix]), room
        extra = {"positive_ids": drawn[:room][::-1].copy(), "negative_ids": np.roll(drawn[:room], 1)} if feed.view == "tuples" else {}
    words = None if feed.word_starts == "none" else np.ones(len(ids), bool)
    return Example(number, number, ids, np.zeros(len(ids), np.int64), raw, words, extra)
