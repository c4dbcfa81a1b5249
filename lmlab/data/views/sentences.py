"""Sentences, one by one or in pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lmlab.data.batch import Example, Feed
from lmlab.data.order import rng
from lmlab.data.store import TokenStore
from lmlab.data.views.base import View, too_short
from lmlab.errors import ConfigError, DataError
from lmlab.tokenizer import Tokenizer

_STRIDE = 2**20  # sentences looked at in one go
PAIRING = 4  # stream of randomness
CANDIDATES = 16  # of which the false second sentence most like the true one in length is taken


@dataclass(frozen=True)
class Stretch:
    """Consecutive tokens of a store.

    Args:
        begin: The first.
        end: The one after the last.
    """

    begin: int
    end: int

    def __len__(self) -> int:
        """Number of tokens."""
        return self.end - self.begin


class SentenceView(View):
    """One sentence an example, of varying length; what does not fit into `length` is cut off.

    With `feed.min_tokens`, shorter sentences are left out. Which ones remain is found once, at 8 bytes each, so that any example is still
    looked up in no time.

    Args:
        store: The tokens.
        feed: Longest example, shortest sentence and special tokens.
        tokenizer: Knows which tokens begin a word.

    Raises:
        DataError: If there is no sentence, or none is long enough.
        ConfigError: If the special tokens leave no room for text.
    """

    def __init__(self, store: TokenStore, feed: Feed, tokenizer: Tokenizer) -> None:
        super().__init__(store, feed, tokenizer)
        self.room = _room(feed, copies_of_suffix=1)
        if not len(store.sentences):
            raise too_short(store, "it has no sentences")
        self.min_tokens, self._kept = feed.min_tokens, None
        if feed.min_tokens > 1:
            self._kept = np.concatenate([first + np.flatnonzero(sizes >= feed.min_tokens) for first, sizes in self._sizes()])
        if self._kept is not None and not len(self._kept):
            why = f"none of its {len(store.sentences)} sentences has {feed.min_tokens} tokens"
            raise too_short(store, why, "use a longer text, or lower min_tokens")

    def __len__(self) -> int:
        """Number of sentences."""
        return len(self.store.sentences if self._kept is None else self._kept)

    @property
    def num_raw_tokens(self) -> int:
        """Corpus tokens in all examples, cut as they are."""
        return sum(int(np.minimum(sizes[sizes >= self.min_tokens], self.room).sum()) for _, sizes in self._sizes())

    def _sizes(self) -> Iterator[tuple[int, np.ndarray]]:
        """Some sentences at a time: the number of the first, and how many tokens each has."""
        bounds = self.store.sentences
        for first in range(0, len(bounds), _STRIDE):
            ends = np.append(bounds[first + 1 : first + _STRIDE], _end_of(bounds, min(first + _STRIDE, len(bounds)) - 1, self.store))
            yield first, ends - bounds[first : first + _STRIDE]

    def __getitem__(self, index: int) -> Example:
        """Sentence `index`, between prefix and suffix."""
        self._check(index)
        sentence = index if self._kept is None else int(self._kept[index])
        begin = int(self.store.sentences[sentence])
        end = min(_end_of(self.store.sentences, sentence, self.store), begin + self.room)
        ids = np.concatenate([self.prefix, self.store.tokens[begin:end], self.suffix], dtype=np.int64)
        starts = self._word_starts(ids, np.array([len(self.prefix)]))
        return Example(0, index, ids, np.zeros(len(ids), np.int64), end - begin, starts)


class SentencePairView(View):
    """Two consecutive stretches of whole sentences of one document, together as long as fits: prefix A suffix B suffix.

    A document is cut, from its beginning, into runs of sentences that fit into `length`; a run is divided at the sentence nearest to
    its middle. Two sentences that are too long together are cut to fit, the longer one first. A last sentence that is left alone
    is left out, and so is a document of one sentence. `extra["second_start"]` is the place of B's first token.

    That is how the text is read first, and validated always. When it is read again, a run begins at any of its sentences and goes on
    for as long as fits, for a small corpus has few pairs, and the same ones over and over would be learned by heart.

    With `feed.negatives`, half of the pairs, drawn by (seed, position, index), are false, and `extra["pair_label"]` is 1 for these and
    0 for the others. `document`: B is that of another pair, in another document, and as like the true one in length as a few draws allow.
    `order`: B comes before A. White space around both is left out: there is none after the end of a document and before its beginning,
    and the one between two sentences or paragraphs is divided among them in a way that would tell which of them met.

    Args:
        store: The tokens.
        feed: Longest example and special tokens.
        tokenizer: Knows which tokens begin a word.

    Raises:
        DataError: If no document has two sentences, or there is no other document to take a false B from.
        ConfigError: If the special tokens leave no room for text.

    Source: Devlin et al. 2019, "BERT", appendix A.2 (`document`); Lan et al. 2020, "ALBERT", section 3.1 (`order`).
    """

    def __init__(self, store: TokenStore, feed: Feed, tokenizer: Tokenizer) -> None:
        super().__init__(store, feed, tokenizer)
        self.room = _room(feed, copies_of_suffix=2)
        if self.room < 2:
            raise ConfigError(f"length = {feed.length} is too short for two sentences", where="length", remedy="set a larger length")
        self._runs = sentence_runs(store.sentences, store.offsets, self.room)
        if not len(self._runs):
            raise too_short(store, "no document has two sentences")
        self.negatives = feed.negatives
        first, last = (self._document(int(store.sentences[self._runs[at, 0]])) for at in (0, -1))
        if self.negatives == "document" and first == last:
            split = store.header.split
            raise DataError(
                f"the {split} split has one document with sentences, so those of another one cannot be had",
                where=str(store.path),
                why="next-sentence prediction takes half of its second sentences from other documents",
                remedy="use a corpus of several documents, or predict the order of sentences instead (`pairs: sop`)"
                + ("" if split == "train" else f", or hold out more: raise store.{split}_share"),
            )

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._runs)

    @property
    def num_raw_tokens(self) -> int:
        """Corpus tokens in all pairs."""
        return int(np.minimum(self._ends() - self.store.sentences[self._runs[:, 0]], self.room).sum())

    def __getitem__(self, index: int) -> Example:
        """Pair `index`; whether it is a true one does not change."""
        return self.draw(index, index, 0)

    def draw(self, index: int, position: int, seed: int) -> Example:
        """Pair `index` at its place in a run; see the class for what is drawn."""
        self._check(index)
        generator = rng(seed, PAIRING, position, index)
        moved = generator if position >= len(self) else None  # the text is read again
        a, b = self._pair(index, moved)
        if self.negatives == "none":
            return self._joined(index, position, a, b, {})
        label = int(generator.random() < 0.5)
        if label:
            a, b = (b, a) if self.negatives == "order" else (a, self._elsewhere(a, b, generator, moved))
        return self._joined(index, position, a, b, {"pair_label": label})

    def _pair(self, index: int, moved: np.random.Generator | None) -> tuple[Stretch, Stretch]:
        """The two halves of a run, before they are cut to fit; with a generator, of what fits from any of its sentences on."""
        first, last = (int(bound) for bound in self._runs[index])
        if moved is not None:
            end_of_document = int(self.store.offsets[self._document(int(self.store.sentences[first])) + 1])
            stop = int(np.searchsorted(self.store.sentences, end_of_document))
            first += int(moved.integers(min(last, stop - 1) - first))
            limit = int(self.store.sentences[first]) + self.room
            fitting = stop if end_of_document <= limit else int(np.searchsorted(self.store.sentences, limit, side="right")) - 1
            last = max(first + 2, fitting)
        bounds = self.store.sentences[first:last]
        begin, end = int(bounds[0]), _end_of(self.store.sentences, last - 1, self.store)
        middle = int(bounds[1:][np.abs(2 * bounds[1:] - begin - end).argmin()])
        return Stretch(begin, middle), Stretch(middle, end)

    def _elsewhere(self, a: Stretch, b: Stretch, generator: np.random.Generator, moved: np.random.Generator | None) -> Stretch:
        """The second half of a run of another document than `a` is in; of a few that are drawn, the one most like `b` in length."""
        around = np.searchsorted(self.store.sentences, self.store.offsets[self._document(a.begin) :][:2])
        own = np.searchsorted(self._runs[:, 0], around)
        drawn = generator.integers(len(self._runs) - int(own[1] - own[0]), size=CANDIDATES)
        candidates = [self._pair(int(run), moved)[1] for run in np.where(drawn >= own[0], drawn + own[1] - own[0], drawn)]
        fits = len(a) + len(b) <= self.room  # then it must not have to be cut, either
        return min(candidates, key=lambda other: (fits and len(a) + len(other) > self.room, abs(len(other) - len(b))))

    def _document(self, token: int) -> int:
        return int(np.searchsorted(self.store.offsets, token, side="right")) - 1

    def _joined(self, index: int, position: int, a: Stretch, b: Stretch, extra: dict[str, int]) -> Example:
        # one token more than can stay, so that what is too long is known to be
        one, two = (np.asarray(self.store.tokens[x.begin : min(x.end, x.begin + self.room + 1)], np.int64) for x in (a, b))
        if self.negatives != "none":
            one, two = self._stripped(one), self._stripped(two)
        size_a, size_b = _fit(len(one), len(two), self.room)
        one, two = one[:size_a], two[:size_b]
        ids = np.concatenate([self.prefix, one, self.suffix, two, self.suffix], dtype=np.int64)
        second = len(self.prefix) + size_a + len(self.suffix)
        starts = self._word_starts(ids, np.array([len(self.prefix), second]))
        return Example(position, index, ids, np.zeros(len(ids), np.int64), size_a + size_b, starts, {"second_start": second, **extra})

    def _stripped(self, tokens: np.ndarray) -> np.ndarray:
        """Without white space before and after it; as it is, if there is nothing else."""
        decode, end = self.tokenizer.decode, len(tokens)
        for begin in reversed(range(len(tokens))):
            text = decode(tokens[begin:end].tolist())
            if text.isspace():
                end = begin
            elif not text.startswith("\ufffd") or end - begin >= 3:  # a white space takes up to three bytes, each perhaps a token
                break
        first = next((place for place in range(end) if not decode(tokens[place : place + 1].tolist()).isspace()), None)
        if first is None:
            return tokens
        text = decode(tokens[first : first + 1].tolist())
        if text[:1].isspace():  # " word" is another token than "word"
            return np.concatenate([self.tokenizer.encode(text.lstrip()), tokens[first + 1 : end]], dtype=np.int64)
        return tokens[first:end]

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
