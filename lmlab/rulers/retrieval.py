"""Half-to-half retrieval: do vectors tell which half of a passage belongs to which? It needs no labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmlab.data.batch import Feed
from lmlab.data.module import CorpusModule
from lmlab.data.views import make_view
from lmlab.errors import ConfigError, DataError


class Halves(NamedTuple):
    """A passage in two parts.

    Args:
        first: Whole sentences.
        second: Those after them, about as many tokens.
    """

    first: str
    second: str


class Retrieval(NamedTuple):
    """How well the other halves are found.

    Args:
        accuracy: Share of halves whose other half is the nearest of all N.
        reciprocal_rank: Mean of 1 / rank of the other half.
        num_passages: N; chance has an accuracy of 1 / N.
    """

    accuracy: float
    reciprocal_rank: float
    num_passages: int


def find_other_halves(passages: Sequence[Halves], embed: Callable[[Sequence[str]], Tensor]) -> Retrieval:
    """Looks for the second half of each passage by its first, and for the first by its second.

    Words that both halves share, such as names, help: an untrained network whose vectors are means over tokens is far above chance, and
    is what a trained one is to be compared with.

    Args:
        passages: At least two.
        embed: Makes vectors (N, D) of length 1 of texts.

    Raises:
        DataError: If there is nothing to tell apart.

    Source: the task of Lee et al. 2019, "Latent Retrieval for Weakly Supervised Open Domain Question Answering", section 4 (inverse cloze),
    with passages cut in the middle.
    """
    if len(passages) < 2:
        raise DataError("retrieval needs two passages", why=f"there are {len(passages)}", remedy="use a longer text or shorter passages")
    first, second = embed([p.first for p in passages]), embed([p.second for p in passages])
    cosines = first @ second.T  # (N, N)
    ranks = torch.cat([_ranks(cosines), _ranks(cosines.T)])
    return Retrieval((ranks == 1).double().mean().item(), (1 / ranks).mean().item(), len(passages))


def _ranks(cosines: Tensor) -> Tensor:
    """(N,) float64 rank of the diagonal in its row; among equals, the middle one."""
    own = cosines.diagonal()[:, None]
    better, equal = (cosines > own).sum(1), (cosines == own).sum(1) - 1
    return 1 + better.double() + equal.double() / 2


def halves(data: CorpusModule, split: str, length: int = 128, limit: int | None = None) -> list[Halves]:
    """Passages of the held-out documents of a run, in two halves.

    Args:
        data: Prepared; its tokenizer counts the tokens, so runs with one tokenizer are asked for the same passages.
        split: `val` or `test`.
        length: Most tokens of a passage.
        limit: Use only this many, evenly spread; None for all.
    """
    if data.tokenizer is None:
        raise ConfigError("the data has no tokenizer", where="CorpusModule.tokenizer", remedy="CorpusModule(corpus, tokenizer, feed)")
    if not data.stores:
        data.setup("validate")
    feed = Feed(view="sentence_pairs", length=length, collate=_unused, eval_collate=_unused)
    view = make_view(data.stores[split], feed, data.tokenizer)
    chosen = len(view) if limit is None else min(limit, len(view))
    found = []
    for i in range(chosen):
        example = view[i * len(view) // chosen]
        middle = int((example.extra or {})["second_start"])
        ids = example.input_ids.tolist()
        found.append(Halves(data.tokenizer.decode(ids[:middle]), data.tokenizer.decode(ids[middle:])))
    return found


def _unused(examples: Sequence[Any], seed: int) -> dict[str, Any]:
    raise AssertionError("passages are read one by one")
