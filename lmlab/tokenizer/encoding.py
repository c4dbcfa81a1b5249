"""Texts to ids in batches whose memory is bounded, however long a text is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from lmlab.tokenizer import cutting

BATCH_CHARACTERS = 1 << 20  # encodings of the library weigh some hundred bytes a token, so few of them exist at a time


class EncodedPiece(NamedTuple):
    """A piece of a text.

    Args:
        number: Which text it belongs to.
        piece: The piece.
        ids: Its ids, int32.
    """

    number: int
    piece: str
    ids: np.ndarray


def encode_pieces(texts: Sequence[str], backend: tokenizers.Tokenizer, at_line_ends: bool) -> Iterator[EncodedPiece]:
    """Encodes texts piece by piece, on all cores.

    Args:
        texts: Any texts.
        backend: The library's tokenizer.
        at_line_ends: Whether a long text may be cut at any line end, from `cutting.parts_lines`.

    Yields:
        The pieces of all texts, in order; none of an empty text.

    Raises:
        DataError: If one is not a string.
    """
    for batch in _batches(texts, at_line_ends):
        for (number, piece), encoded in zip(batch, _encode_batch([piece for _, piece in batch], backend), strict=True):
            yield EncodedPiece(number, piece, np.array(encoded.ids, dtype=np.int32))


def _batches(texts: Sequence[str], at_line_ends: bool) -> Iterator[list[tuple[int, str]]]:
    batch: list[tuple[int, str]] = []
    size = 0
    for number, text in enumerate(texts):
        for piece in cutting.cut(text, at_line_ends=at_line_ends) if isinstance(text, str) else [cutting.sanitise(text)]:
            batch.append((number, piece))
            size += len(piece)
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _encode_batch(pieces: list[str], backend: tokenizers.Tokenizer) -> list[tokenizers.Encoding]:
    try:
        return backend.encode_batch_fast(pieces, add_special_tokens=False)
    except TypeError:  # a lone surrogate somewhere; looking for one beforehand would cost every text
        return backend.encode_batch_fast([cutting.sanitise(piece) for piece in pieces], add_special_tokens=False)
