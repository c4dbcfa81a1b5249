"""Blocks: the text as one stream of tokens, cut into pieces of equal length."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from lmlab.data.batch import Example, Feed
from lmlab.data.store import TokenStore
from lmlab.data.views.base import View, too_short
from lmlab.tokenizer import Tokenizer


class BlockView(View):
    """Blocks of equal length, packed without padding.

    The text is one stream: prefix, document, suffix, prefix, next document, and so on. Block i is `length` tokens of it from
    `i * length` on, and `lookahead` further ones, which the next block begins with. The end that fills no block is left out.
    `document_ids` count from 0 in each block; `num_raw_tokens` does not count the lookahead, so no token is counted twice.

    Args:
        store: The tokens.
        feed: Length, special tokens and lookahead.
        tokenizer: Knows which tokens begin a word.

    Raises:
        DataError: If the text does not fill one block.
    """

    def __init__(self, store: TokenStore, feed: Feed, tokenizer: Tokenizer) -> None:
        super().__init__(store, feed, tokenizer)
        self.lookahead = feed.lookahead
        self._specials = len(self.prefix) + len(self.suffix)
        stream = store.num_tokens + store.num_documents * self._specials
        self._size = max(0, (stream - self.lookahead) // self.length)
        if not self._size:
            raise too_short(store, f"a block takes {self.length + self.lookahead} tokens, the text has {stream}")

    def __len__(self) -> int:
        """Number of blocks."""
        return self._size

    @property
    def num_raw_tokens(self) -> int:
        """Corpus tokens in all blocks."""
        end = self._size * self.length
        last = self._document_at(end - 1)
        inside = end - self._start(last) - len(self.prefix)
        return int(self.store.offsets[last]) + min(max(inside, 0), int(np.diff(self.store.offsets[last : last + 2])[0]))

    def __getitem__(self, index: int) -> Example:
        """Block `index`."""
        self._check(index)
        begin, end = index * self.length, (index + 1) * self.length + self.lookahead
        first, last = self._document_at(begin), self._document_at(end - 1)
        offsets = self.store.offsets[first : last + 2]
        starts = offsets[:-1] + np.arange(first, last + 1) * self._specials - begin  # of the documents, in the block
        text_starts = starts + len(self.prefix)
        text_ends = text_starts + np.diff(offsets)
        # documents lie one after the other in the store, so the text of a block is one stretch of it
        low = int(offsets[0] + min(max(0, -text_starts[0]), offsets[1] - offsets[0]))
        high = int(offsets[-2] + min(max(0, end - begin - text_starts[-1]), offsets[-1] - offsets[-2]))
        ids = self._with_specials(self.store.tokens[low:high], starts, text_ends, end - begin)
        bounds = np.append(starts, end - begin)
        bounds[0] = 0
        document_ids = np.repeat(np.arange(last - first + 1), np.diff(bounds))
        inside = text_starts[(text_starts >= 0) & (text_starts < end - begin)]
        num_raw = int((np.minimum(text_ends, self.length) - np.clip(text_starts, 0, self.length)).clip(0).sum())
        return Example(0, index, ids, document_ids, num_raw, self._word_starts(ids, inside))

    def _with_specials(self, text: np.ndarray, starts: np.ndarray, text_ends: np.ndarray, size: int) -> np.ndarray:
        ids = np.empty(size, np.int64)
        if not self._specials:
            ids[:] = text
            return ids
        is_text = np.ones(size, dtype=bool)
        for places, token in [(starts + i, token) for i, token in enumerate(self.prefix)] + [
            (text_ends + i, token) for i, token in enumerate(self.suffix)
        ]:
            places = places[(places >= 0) & (places < size)]
            is_text[places] = False
            ids[places] = token
        ids[is_text] = text
        return ids

    def _start(self, document: int) -> int:
        return int(self.store.offsets[document]) + document * self._specials

    def _document_at(self, place: int) -> int:
        """The document that holds a place of the stream."""
        return bisect_right(range(self.store.num_documents), place, key=self._start) - 1
