"""The corpus as training reads it: in bounded pieces, as far as allowed, as often as needed; never all at once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeAlias

import numpy as np
from tokenizers import normalizers

from lmlab.errors import DataError
from lmlab.tokenizer import cutting
from lmlab.tokenizer.config import TokenizerConfig

log = logging.getLogger(__name__)

Opener: TypeAlias = Callable[[], Iterable[str]]
"""Opens the corpus at its beginning."""


def stream(open_texts: Opener, config: TokenizerConfig, normalizer: normalizers.Normalizer | None = None) -> Iterator[str]:
    """The corpus in pieces of bounded size, up to `train_characters`, normalised if a way is given.

    It takes the normalizer and not the tokenizer: asking a tokenizer for it while that is being trained waits for ever.

    Args:
        open_texts: Opens the corpus.
        config: How far to read.
        normalizer: What every piece goes through.

    Yields:
        Pieces of text.

    Raises:
        DataError: At the end, if there was no text.
    """
    read = 0
    blank = True
    for text in open_texts():
        for piece in cutting.cut(cutting.sanitise(text)):
            taken = piece[: config.train_characters - read]
            read += len(taken)
            blank = blank and not taken.strip()
            yield normalizer.normalize_str(taken) if normalizer else taken
            if read >= config.train_characters:
                log.info("the tokenizer is learned from the first %d characters (train_characters)", read)
                return
    if blank:
        raise DataError(
            "there is no text to learn a tokenizer from", why="every document is empty", remedy="check the corpus path and field"
        )


def count(texts: Iterable[str]) -> np.ndarray:
    """How often each code point occurs; counted in large lumps, because the table is large.

    Returns:
        (0x110000,) int64.
    """
    counts = np.zeros(0x110000, dtype=np.int64)
    lump: list[str] = []
    size = 0
    for text in texts:
        lump.append(text)
        size += len(text)
        if size >= cutting.PIECE_CHARACTERS:
            counts += _code_points(lump)
            lump, size = [], 0
    return counts + _code_points(lump)


def _code_points(lump: list[str]) -> np.ndarray:
    return np.bincount(np.frombuffer("".join(lump).encode("utf-32-le"), dtype=np.uint32), minlength=0x110000)


def frequent(counts: np.ndarray, limit: int) -> list[str]:
    """At most `limit` characters, most frequent first, ties by code point."""
    order = np.argsort(-counts, kind="stable")[: max(limit, 0)]
    return [chr(code) for code in order if counts[code]]


def only(alphabet: list[str], texts: Iterable[str]) -> Iterator[str]:
    """Texts with every character outside the alphabet made a space, so that it does not enter the vocabulary.

    Args:
        alphabet: Characters to keep; white space is kept anyway.
        texts: Any texts.
    """
    known = {ord(c) for c in alphabet}

    class Table(dict[int, int]):
        def __missing__(self, code: int) -> int:
            self[code] = code if code in known or chr(code).isspace() else ord(" ")
            return self[code]

    table = Table()
    for text in texts:
        yield text.translate(table)


def reopened(texts: Iterable[str] | Opener, spool: TextIO) -> Opener:
    """A corpus that can be read again; a stream that cannot is copied to a file while it is read the first time.

    Args:
        texts: The corpus, or a function that opens it.
        spool: An empty file, open for reading and writing.
    """
    if callable(texts):
        return texts
    if iter(texts) is not texts:
        return lambda: texts

    def reopen() -> Iterator[str]:
        spool.seek(0)
        copied = False
        for line in spool:
            copied = True
            yield json.loads(line)
        for text in () if copied else texts:
            spool.write(json.dumps(text) + "\n")
            yield text

    return reopen
