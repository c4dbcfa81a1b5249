"""Documents to tokens, with the tokens at which sentences begin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lmlab.data.sentences import sentence_starts
from lmlab.tokenizer import Tokenizer

_BATCH_CHARACTERS = 2**18  # the library's encodings weigh some hundred bytes a token, so few exist at a time


class Encoded(NamedTuple):
    """One document.

    Args:
        ids: (T,) int32 tokens.
        sentences: (number of sentences,) int64, tokens at which they begin, ascending, the first 0.
        num_bytes: UTF-8 bytes of the text.
    """

    ids: np.ndarray
    sentences: np.ndarray
    num_bytes: int


class Encoder:
    """Encodes documents with one tokenizer.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._token_bytes = np.asarray(tokenizer.token_bytes(), dtype=np.int64)

    def encode(self, texts: Sequence[str]) -> Iterator[Encoded]:
        """Encodes documents in their order, a few at a time.

        Args:
            texts: Documents of any length.

        Yields:
            One result for each.
        """
        for batch in _batches(texts):
            for text, ids in zip(batch, self.tokenizer.encode_batch(batch), strict=True):
                yield self._with_sentences(text, ids)

    def _with_sentences(self, text: str, ids: np.ndarray) -> Encoded:
        starts = sentence_starts(text)
        num_bytes = len(text) if text.isascii() else len(text.encode())
        if not len(ids):
            return Encoded(ids, np.zeros(0, np.int64), num_bytes)
        ends = np.cumsum(self._token_bytes[ids])
        if ends[-1] == num_bytes:  # no byte of the text is lost, so bytes say which token holds a character
            firsts = np.searchsorted(ends, _byte_offsets(text, starts), side="right")
        else:
            firsts = self._by_counting(text, starts, len(ids))
        firsts[:1] = 0  # also where the first token stands for no byte
        return Encoded(ids, np.unique(np.minimum(firsts, len(ids) - 1)), num_bytes)

    def _by_counting(self, text: str, starts: np.ndarray, num_ids: int) -> np.ndarray:
        """First tokens of sentences, from the number of tokens that each sentence has on its own.

        Exact for WordPiece, which forgets spaces, because it never joins anything across a space or a punctuation mark. Otherwise,
        where normalisation changed the text, a boundary may be off by the tokens that a cut costs.
        """
        bounds = [*starts.tolist(), len(text)]
        pieces = [text[begin:end] for begin, end in zip(bounds, bounds[1:], strict=False)]
        counts = np.array([len(ids) for ids in self.tokenizer.encode_batch(pieces)])
        before = np.cumsum(counts) - counts
        total = int(counts.sum())
        return before if total == num_ids else before * num_ids // max(1, total)


def _byte_offsets(text: str, starts: np.ndarray) -> np.ndarray:
    if text.isascii():
        return starts
    bounds = starts.tolist()
    sizes = [len(text[begin:end].encode()) for begin, end in zip(bounds, bounds[1:], strict=False)]
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
