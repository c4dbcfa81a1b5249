"""The n-gram anchors: what counting alone makes of a text, and so what a model must beat before it has learnt anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from lmlab.data.batch import Example
from lmlab.data.module import CorpusModule
from lmlab.data.smoothing import Smoothing, smooth
from lmlab.data.views import make_view
from lmlab.nn.ngram_table import NGramTable
from lmlab.objectives.clm import tells_bytes

MAX_COUNTED = 3_000_000
"""Tokens to count, spread over the text, in about six seconds. The anchors of a larger text could be somewhat better than they are."""

MODELS: dict[str, tuple[int, Smoothing]] = {"unigram": (1, "witten_bell"), "bigram": (2, "witten_bell"), "kneser_ney": (5, "kneser_ney")}
"""Order and smoothing of the anchors that are counted."""


class Anchors(NamedTuple):
    """Bits per byte of reference models on the same text.

    Args:
        uniform: Every token alike.
        unigram: Each token by its frequency.
        bigram: Each token by its frequency after the token before it.
        kneser_ney: Each token by the four before it, with modified Kneser-Ney smoothing.
    """

    uniform: float
    unigram: float
    bigram: float
    kneser_ney: float


def anchors_for(data: CorpusModule) -> Anchors | None:
    """The anchors of a run: counted on its training text, read on the very blocks it is validated on.

    Args:
        data: The run's data, prepared.

    Returns:
        None where there is no likelihood to compare: the objective is not fed blocks with one token of lookahead, or its tokens do
        not tell how many bytes they stand for.
    """
    tokenizer = data.tokenizer
    causal = [(task, feed) for task, feed in data.feeds.items() if feed.view == "blocks" and feed.lookahead == 1]
    if not causal or tokenizer is None or not tells_bytes(tokenizer):
        return None
    task, feed = causal[0]
    train, held_out = data.view("train", task), data.evaluation("val", task)
    # read in longer blocks, which is faster and counts the same, but for a remainder at the end of the text
    wide = feed.length * max(1, min(32, len(train) // 20))
    train = make_view(data.opened(task)["train"], dataclasses.replace(feed, length=wide), tokenizer)
    counted = min(len(train), max(1, MAX_COUNTED // wide))
    blocks = (train[i * len(train) // counted] for i in range(counted))
    begin_id = feed.prefix[0] if feed.prefix else -1
    return anchors(blocks, [held_out[i] for i in range(len(held_out))], tokenizer.token_bytes(), begin_id)


def anchors(train: Iterable[Example], held_out: Sequence[Example], token_bytes: np.ndarray, begin_id: int = -1) -> Anchors:
    """Bits per byte of the reference models on held-out blocks: the same tokens a causal model is asked for.

    Args:
        train: Blocks to count, with one token of lookahead.
        held_out: Blocks to score.
        token_bytes: (V,) bytes of text each token stands for.
        begin_id: The token that begins a document; -1 if there is none.
    """
    vocab_size, tokens = len(token_bytes), np.stack([e.input_ids for e in held_out])
    longest = min(max(order for order, _ in MODELS.values()), tokens.shape[1] - 1)  # short blocks have no longer contexts
    table = NGramTable(longest, vocab_size, begin_id)
    for example in train:
        table.add(torch.tensor([example.index]), torch.from_numpy(example.input_ids[None]))
    counts = table.counts()
    num_bytes = token_bytes[tokens[:, 1:]].sum()
    scores = {"uniform": np.log2(vocab_size) * tokens[:, 1:].size / num_bytes}
    for name, (order, smoothing) in MODELS.items():
        scores[name] = -np.log2(smooth(counts.cut(order), smoothing).probabilities(tokens)).sum() / num_bytes
    return Anchors(**{name: float(score) for name, score in scores.items()})
