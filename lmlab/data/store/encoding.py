"""Documents to tokens, with the tokens at which sentences begin."""

from __future__ import annotations

import itertools
import json
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
    """Encodes documents with one tokenizer; the tokens are those of `Tokenizer.encode`.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._token_bytes = np.asarray(tokenizer.token_bytes(), dtype=np.int64)
        self._splits_at_punctuation = _splits_at_punctuation(tokenizer)

    def encode(self, texts: Sequence[str], by_line: Sequence[bool] | None = None) -> Iterator[Encoded]:
        """Encodes documents in their order, a few at a time.

        Args:
            texts: Documents of any length.
            by_line: Whose lines are texts of their own, see `Document`: each is encoded alone, without the line break, and `sentences`
                says where they begin. None: nobody's.

        Yields:
            One result for each.
        """
        flags = [False] * len(texts) if by_line is None else by_line
        kinds = {False: self._by_sentence if self._splits_at_punctuation else self._whole, True: self._by_line}
        results = {
            flag: itertools.chain.from_iterable(map(kinds[flag], _batches([t for t, f in zip(texts, flags, strict=True) if f == flag])))
            for flag in kinds
        }
        for flag in flags:
            yield next(results[flag])

    def _by_sentence(self, texts: Sequence[str]) -> Iterator[Encoded]:
        """For BERT's tokenizers: no token crosses the end of a sentence, so sentences can be encoded on their own."""
        return self._apart(texts, [_cut(text, sentence_starts(text)) for text in texts])

    def _by_line(self, texts: Sequence[str]) -> Iterator[Encoded]:
        return self._apart(texts, [text.split("\n") for text in texts])

    def _apart(self, texts: Sequence[str], parts: Sequence[list[str]]) -> Iterator[Encoded]:
        ids = iter(self.tokenizer.encode_batch([sentence for part in parts for sentence in part]))
        for text, part in zip(texts, parts, strict=True):
            yield _joined(text, list(itertools.islice(ids, len(part))))

    def _whole(self, texts: Sequence[str]) -> Iterator[Encoded]:
        for text, ids in zip(texts, self.tokenizer.encode_batch(texts), strict=True):
            starts = sentence_starts(text)
            ends = np.cumsum(self._token_bytes[ids])
            if not len(ids):
                firsts = np.zeros(0, np.int64)
            elif ends[-1] == _utf8_size(text):  # no byte of the text is lost, so bytes say which token holds a character
                firsts = np.searchsorted(ends, _byte_offsets(text, starts), side="right")
            else:
                firsts = self._by_counting(text, starts, len(ids))
            firsts[:1] = 0  # also where the first token stands for no byte
            yield Encoded(ids, np.unique(np.minimum(firsts, len(ids) - 1)), _utf8_size(text))

    def _by_counting(self, text: str, starts: np.ndarray, num_ids: int) -> np.ndarray:
        """First tokens of sentences, from the number of tokens that each has on its own.

        For text that the tokenizer's normalisation changes; a boundary may be off by the tokens that a cut costs.
        """
        counts = np.array([len(ids) for ids in self.tokenizer.encode_batch(_cut(text, starts))])
        before = np.cumsum(counts) - counts
        total = int(counts.sum())
        return before if total == num_ids else before * num_ids // max(1, total)


def _joined(text: str, ids_of_sentences: list[np.ndarray]) -> Encoded:
    ids = np.concatenate(ids_of_sentences) if ids_of_sentences else np.zeros(0, np.int32)
    sizes = np.array([len(ids) for ids in ids_of_sentences if len(ids)], np.int64)
    return Encoded(ids, np.cumsum(sizes) - sizes, _utf8_size(text))


def _splits_at_punctuation(tokenizer: Tokenizer) -> bool:
    parts = json.loads(tokenizer.json)
    added = [token["content"] for token in parts.get("added_tokens", []) if not token["special"]]
    if not all(content.isalnum() for content in added):  # it may hold the end of a sentence, or a space
        return False
    return parts["model"]["type"] == "WordPiece" and (parts.get("pre_tokenizer") or {}).get("type") == "BertPreTokenizer"


def _cut(text: str, starts: np.ndarray) -> list[str]:
    bounds = [*starts.tolist(), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(bounds)]


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _byte_offsets(text: str, starts: np.ndarray) -> np.ndarray:
    if text.isascii():
        return starts
    sizes = np.array([_utf8_size(sentence) for sentence in _cut(text, starts)], np.int64)
    return np.cumsum(sizes) - sizes


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
