"""Texts by corpus and model, put together from tokens."""

from __future__ import annotations

from collections.abc import Sequence

from lmlab.data.batch import Example
from lmlab.run.samples import Piece
from lmlab.tokenizer import Tokenizer


def cut(example: Example, length: int) -> Example:
    """The first tokens of an example.

    Args:
        example: Of any length.
        length: Tokens to keep at most.
    """
    words = None if example.word_starts is None else example.word_starts[:length]
    return example._replace(input_ids=example.input_ids[:length], document_ids=example.document_ids[:length], word_starts=words)


def pieces_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token, such that together they are the text of all.

    A token that ends in the middle of a character gives its share to the token that completes it.

    Args:
        tokenizer: Decodes.
        ids: Tokens.
    """
    ends = [len(tokenizer.decode(ids[:i]).rstrip("\ufffd")) for i in range(len(ids) + 1)]
    text = tokenizer.decode(ids)
    return [text[max(ends[:i]) : max(ends[: i + 1])] for i in range(1, len(ends))]


def merge(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Joins neighbouring pieces by the corpus; those by the model stay apart, each with its own truth.

    Args:
        pieces: In order.
    """
    merged: list[Piece] = []
    for piece in pieces:
        if merged and piece.by == merged[-1].by == "corpus":
            merged[-1] = Piece(text=merged[-1].text + piece.text)
        else:
            merged.append(piece)
    return tuple(merged)
