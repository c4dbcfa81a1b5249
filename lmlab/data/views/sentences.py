"""Sentences, one by one or in pairs."""

from __future__ import annotations

import numpy as np

from lmlab.data.batch import Example, Feed
from lmlab.data.store import TokenStore
from lmlab.data.views.base import View, too_short
from lmlab.errors import ConfigError
from lmlab.tokenizer import Tokenizer

_STRIDE = 2**20  # sentences looked at in one go


class SentenceView(View):
    """One sentence an example, of varying length; what does not fit into `length` is cut off.

    Args:
        store: The tokens.
        feed: Longest example and special tokens.
        tokenizer: Knows which tokens begin a word.

    Raises:
        DataError: If there is no sentence.
        ConfigError: If the special tokens leave no room for text.
    """

    def __init__(self, store: TokenStore, feed: Feed, tokenizer: Tokenizer) -> None:
        super().__init__(store, feed, tokenizer)
        self.room = _room(feed, copies_of_suffix=1)
        if not len(store.sentences):
            raise too_short(store, "it has no sentences")

    def __len__(self) -> int:
        """Number of sentences."""
        return len(self.store.sentences)

    @property
    def num_raw_tokens(self) -> int:
        """Corpus tokens in all examples, cut as they are."""
        bounds = self.store.sentences
        total = 0
        for first in range(0, len(bounds), _STRIDE):
            ends = np.append(bounds[first + 1 : first + _STRIDE], _end_of(bounds, first + _STRIDE - 1, self.store))
            total += int(np.minimum(ends - bounds[first : first + _STRIDE], self.room).sum())
        return total

    def __getitem__(self, index: int) -> Example:
        """Sentence `index`, between prefix and suffix."""
        self._check(index)
        begin = int(self.store.sentences[index])
        end = min(_end_of(self.store.sentences, index, self.store), begin + self.room)
        ids = np.concatenate([self.prefix, self.store.tokens[begin:end], self.suffix], dtype=np.int64)
        starts = self._word_starts(ids, np.array([len(self.prefix)]))
        return Example(0, index, ids, np.zeros(len(ids), np.int64), end - begin, starts)


class SentencePairView(View):
    """Two consecutive stretches of whole sentences of one document, together as long as fits: prefix A suffix B suffix.

    A document is cut, from its beginning, into runs of sentences that fit into `length`; a run is divided at the sentence nearest to
    its middle. Two sentences that are too long together are cut to fit, the longer one first. A last sentence that is left alone
    is left out, and so is a document of one sentence. `extra["second_start"]` is the place of B's first token.

    Args:
        store: The tokens.
        feed: Longest example and special tokens.
        tokenizer: Knows which tokens begin a word.

    Raises:
        DataError: If no document has two sentences.
        ConfigError: If the special tokens leave no room for text.

    Source: Devlin et al. 2019, "BERT", appendix A.2 (pairs from contiguous sequences); the negatives are the objective's.
    """

    def __init__(self, store: TokenStore, feed: Feed, tokenizer: Tokenizer) -> None:
        super().__init__(store, feed, tokenizer)
        self.room = _room(feed, copies_of_suffix=2)
        if self.room < 2:
            raise ConfigError(f"length = {feed.length} is too short for two sentences", where="length", remedy="set a larger length")
        self._runs = sentence_runs(store.sentences, store.offsets, self.room)
        if not len(self._runs):
            raise too_short(store, "no document has two sentences")

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._runs)

    @property
    def num_raw_tokens(self) -> int:
        """Corpus tokens in all pairs."""
        return int(np.minimum(self._ends() - self.store.sentences[self._runs[:, 0]], self.room).sum())

    def __getitem__(self, index: int) -> Example:
        """Pair `index`."""
        self._check(index)
        first, last = self._runs[index]
        bounds = self.store.sentences[first:last]
        begin, end = int(bounds[0]), _end_of(self.store.sentences, int(last) - 1, self.store)
        middle = int(bounds[1:][np.abs(2 * bounds[1:] - begin - end).argmin()])
        size_a, size_b = _fit(middle - begin, end - middle, self.room)
        tokens = self.store.tokens
        a, b = tokens[begin : begin + size_a], tokens[middle : middle + size_b]
        ids = np.concatenate([self.prefix, a, self.suffix, b, self.suffix], dtype=np.int64)
        second = len(self.prefix) + size_a + len(self.suffix)
        starts = self._word_starts(ids, np.array([len(self.prefix), second]))
        return Example(0, index, ids, np.zeros(len(ids), np.int64), size_a + size_b, starts, {"second_start": second})

    def _ends(self) -> np.ndarray:
        return np.append(self.store.sentences, self.store.num_tokens)[self._runs[:, 1]]


def sentence_runs(sentences: np.ndarray, offsets: np.ndarray, room: int) -> np.ndarray:
    """Cuts documents into runs of at least two whole sentences that have at most `room` tokens, or are two.

    Args:
        sentences: (S,) int64, tokens at which sentences begin.
        offsets: (D + 1,) int64, tokens at which documents begin; each begins a sentence.
        room: Tokens in a run.

    Returns:
        (R, 2) int64: first sentence of each run, and the one after its last. Ascending, without overlap. 16 bytes a run.
    """
    runs: list[np.ndarray] = []
    first = 0
    while first < len(sentences):
        # whole documents of about _STRIDE sentences at a time, so that memory stays flat
        document = int(np.searchsorted(offsets, sentences[min(first + _STRIDE, len(sentences) - 1)], side="right"))
        stop = int(np.searchsorted(sentences, offsets[min(document, len(offsets) - 1)], side="left"))
        starts = np.append(sentences[first:stop], offsets[min(document, len(offsets) - 1)])
        of_document = offsets[np.searchsorted(offsets, starts[:-1], side="right")]  # where the document of each sentence ends
        fitting = np.searchsorted(starts, starts[:-1] + room, side="right") - 1
        limit = np.searchsorted(starts, of_document, side="left")
        following = np.minimum(np.maximum(fitting, np.arange(len(starts) - 1) + 2), limit)
        runs.append(_follow(following) + first)
        first = stop
    return np.concatenate(runs) if runs else np.zeros((0, 2), np.int64)


def _follow(following: np.ndarray) -> np.ndarray:
    """Walks from run to run; `following[s]` is the sentence after a run that begins with s."""
    steps = following.tolist()
    found: list[int] = []
    at = 0
    while at < len(steps):
        found.append(at)
        at = steps[at]
    begins = np.array(found, np.int64)
    runs = np.stack([begins, following[begins]], axis=1)
    return runs[runs[:, 1] - runs[:, 0] >= 2]


def _end_of(sentences: np.ndarray, index: int, store: TokenStore) -> int:
    return int(sentences[index + 1]) if index + 1 < len(sentences) else store.num_tokens


def _fit(size_a: int, size_b: int, room: int) -> tuple[int, int]:
    if size_a + size_b <= room:
        return size_a, size_b
    half = room // 2
    if size_a <= half:
        return size_a, room - size_a
    return (room - size_b, size_b) if size_b <= room - half else (half, room - half)


def _room(feed: Feed, copies_of_suffix: int) -> int:
    room = feed.length - len(feed.prefix) - copies_of_suffix * len(feed.suffix)
    if room < 1:
        why = f"{feed.length - room} of them are special tokens"
        raise ConfigError(f"length = {feed.length} leaves no room for text", where="length", why=why, remedy="set a larger length")
    return room
