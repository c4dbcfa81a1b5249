"""Texts that go together: a text, what belongs to it, and perhaps what does not."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from lmlab.data.batch import Example, Feed
from lmlab.data.store import TokenStore
from lmlab.data.views.base import View, too_short
from lmlab.errors import DataError
from lmlab.tokenizer import Tokenizer

NAMES = ("positive_ids", "negative_ids")
"""What the texts after the first are called in `Example.extra`."""


class TupleView(View):
    """The documents of a `TupleCorpus`, one an example: prefix text suffix, and the others in `extra`, without special tokens.

    Args:
        store: The tokens.
        feed: Special tokens, and how many texts of a tuple are read.
        tokenizer: Knows which tokens begin a word.

    Raises:
        DataError: If documents are not tuples of one size, or of too few texts.
    """

    def __init__(self, store: TokenStore, feed: Feed, tokenizer: Tokenizer) -> None:
        super().__init__(store, feed, tokenizer)
        if not len(self):
            raise too_short(store, "it has no documents", "use more of them")
        sizes = np.diff(np.searchsorted(store.sentences, store.offsets))  # texts of each document
        self.size = int(sizes[0])
        if not 2 <= self.size <= 1 + len(NAMES) or (sizes != self.size).any():
            odd = int(np.argmax(sizes != self.size))
            raise DataError(
                "the documents are not tuples of texts",
                where=str(store.path),
                why=f"document 0 has {self.size} parts" + (f", document {odd} has {sizes[odd]}" if odd else ""),
                remedy="use a corpus whose documents are two or three texts each: lmlab.data.corpus.TupleCorpus",
            )
        if self.size < feed.num_texts:
            raise DataError(
                f"tuples have {self.size} texts, and {feed.num_texts} are to be compared",
                where=str(store.path),
                why="a hard negative is the third text",
                remedy="name a third field in TupleCorpus.fields, or set hard_negatives to none",
            )

    def __len__(self) -> int:
        """Number of tuples."""
        return self.store.header.num_documents

    @property
    def num_raw_tokens(self) -> int:
        """Corpus tokens in all texts of all tuples."""
        return self.store.header.num_tokens

    def __getitem__(self, index: int) -> Example:
        """Tuple `index`; nothing is cut."""
        self._check(index)
        bounds = [*self.store.sentences[self.size * index : self.size * (index + 1)].tolist(), int(self.store.offsets[index + 1])]
        texts = [np.asarray(self.store.tokens[a:b], np.int64) for a, b in itertools.pairwise(bounds)]
        ids = np.concatenate([self.prefix, texts[0], self.suffix])
        starts = self._word_starts(ids, np.array([len(self.prefix)]))
        extra: dict[str, Any] = dict(zip(NAMES, texts[1:], strict=False))
        return Example(0, index, ids, np.zeros(len(ids), np.int64), sum(map(len, texts)), starts, extra)
