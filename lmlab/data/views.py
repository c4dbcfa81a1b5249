"""Views: what one example is. Random access to a store, without a copy of it.

Special tokens are not in the store. A view adds them as if they were: where an example begins and what stands in it is computed
from the document offsets, so any view can be had of any store, and opening one costs next to nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right

import numpy as np

from lmlab.data.batch import Example, Feed
from lmlab.data.store import TokenStore
from lmlab.errors import ConfigError, DataError
from lmlab.tokenizer import Tokenizer


class View(ABC):
    """Examples of a store, by index.

    Args:
        store: The tokens.
        feed: Length, special tokens and extras of an example.
        tokenizer: Knows which tokens begin a word.
    """

    def __init__(self, store: TokenStore, feed: Feed, tokenizer: Tokenizer) -> None:
        self.store, self.length, self.tokenizer = store, feed.length, tokenizer
        self.prefix, self.suffix = np.array(feed.prefix, np.int64), np.array(feed.suffix, np.int64)
        self.marks_words = feed.word_starts == "mark"

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Example:
        """One example, with position 0.

        Args:
            index: From 0 to `len(self) - 1`.

        Raises:
            IndexError: Outside of that.
        """

    @property
    @abstractmethod
    def num_raw_tokens(self) -> int:
        """Corpus tokens in all examples, special ones not counted."""

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")

    def _word_starts(self, ids: np.ndarray, text_starts: np.ndarray) -> np.ndarray | None:
        """(T,) bool; a text always begins with a word, whatever its first token looks like."""
        if not self.marks_words:
            return None
        starts = np.array(self.tokenizer.word_starts(ids), dtype=bool)
        starts[text_starts] = True
        return starts


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
            raise _too_short(store, f"a block takes {self.length + self.lookahead} tokens, the text has {stream}")

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
            raise _too_short(store, "it has no sentences")

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
            raise _too_short(store, "no document has two sentences")

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


_STRIDE = 2**20  # sentences looked at in one go


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


def make_view(store: TokenStore, feed: Feed, tokenizer: Tokenizer) -> View:
    """The view an objective asks for.

    Args:
        store: One split of a tokenised corpus.
        feed: What the objective wants to be fed.
        tokenizer: The one that made the store.

    Raises:
        ConfigError: If the tokenizer is another one, or the feed cannot be.
        DataError: If the text is too short for a single example.
    """
    store.check_tokenizer(tokenizer.fingerprint)
    kinds: dict[str, type[View]] = {"blocks": BlockView, "sentences": SentenceView, "sentence_pairs": SentencePairView}
    if feed.length < 1 or feed.lookahead < 0:
        raise ConfigError(f"an example of {feed.length} tokens is not possible", where="length", remedy="set a positive length")
    if feed.lookahead and feed.view != "blocks":
        raise ConfigError(f"lookahead has no effect in the view {feed.view}", where="lookahead", remedy="leave it out, or use blocks")
    return kinds[feed.view](store, feed, tokenizer)


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


def _too_short(store: TokenStore, why: str) -> DataError:
    split = store.header.split
    remedy = "use a longer text or a shorter length"
    if split != "train":
        remedy += f", or hold out more: raise store.{split}_share (documents are held out whole)"
    return DataError(f"the {split} split is too short for this view", where=str(store.path), why=why, remedy=remedy)
