"""Counting n-grams: sorted tables in which each n-gram is a shorter one and a token, so that a key fits into 64 bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NONE = -1
"""Row of an n-gram that is not in a table."""


@dataclass(frozen=True)
class Counts:
    """How often each n-gram of 1 to n tokens occurs.

    A row of level k stands for an n-gram of k tokens. Its key is (row of its first k - 1 tokens in level k - 1) * V + (last token),
    so that the continuations of a context are neighbours. Level 1 has a row for each token.

    Args:
        vocab_size: V.
        begin_id: The token that begins a document; no context reaches beyond it. -1 if there is none.
        keys: For each level, (rows,) int64, ascending.
        counts: For each level, (rows,) int64; 0 for an n-gram that is known as the beginning of a longer one only.
    """

    vocab_size: int
    begin_id: int
    keys: tuple[np.ndarray, ...]
    counts: tuple[np.ndarray, ...]

    @property
    def order(self) -> int:
        """Tokens in the longest n-grams."""
        return len(self.keys)

    def cut(self, order: int) -> Counts:
        """The n-grams of at most `order` tokens."""
        return Counts(self.vocab_size, self.begin_id, self.keys[:order], self.counts[:order])

    def parents(self, level: int) -> np.ndarray:
        """Row of the context of each n-gram in the level before, (rows,) int64; 0 in level 1, whose context is empty.

        Args:
            level: From 1 to the order.
        """
        return self.keys[level - 1] // self.vocab_size

    def contexts(self, tokens: np.ndarray) -> list[np.ndarray]:
        """Which contexts end at each token.

        Args:
            tokens: (R, W) int64.

        Returns:
            For k from 1 to the order, (R, W) int64: the row in level k - 1 of the k - 1 tokens that end there; `NONE` where they were
            never seen, or would reach beyond the row. The first are 0: the empty context. One that reaches beyond the document has
            nothing after it, because nothing was counted there.
        """
        found = [np.zeros_like(tokens), tokens][: self.order]
        for level in range(2, self.order):
            keys, now = self.keys[level - 1], np.full_like(tokens, NONE)
            now[:, 1:] = find(keys, found[-1][:, :-1], tokens[:, 1:], self.vocab_size)
            found.append(now)
        return found

    def suffixes(self) -> list[np.ndarray]:
        """For each level from 2 on, the row, in the level before, of each n-gram without its first token: (rows,) int64."""
        found = [self.keys[1] % self.vocab_size] if self.order > 1 else []
        for level in range(3, self.order + 1):
            last = self.keys[level - 1] % self.vocab_size
            found.append(find(self.keys[level - 2], found[-1][self.parents(level)], last, self.vocab_size))
        return found

    def first_tokens(self) -> list[np.ndarray]:
        """For each level, the first token of each n-gram: (rows,) int64."""
        found = [self.keys[0]]
        for level in range(2, self.order + 1):
            found.append(found[-1][self.parents(level)])
        return found


def find(keys: np.ndarray, contexts: np.ndarray, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Looks n-grams up in a level.

    Args:
        keys: Of the level, (rows,) int64.
        contexts: Rows of the level before, or `NONE`; int64 of any shape.
        tokens: Int64 of the same shape.
        vocab_size: V.

    Returns:
        Rows, or `NONE`: int64 of the same shape.
    """
    if not len(keys):
        return np.full_like(tokens, NONE)
    wanted = contexts * vocab_size + tokens
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where((contexts != NONE) & (keys[at] == wanted), at, NONE)


def count(tokens: np.ndarray, order: int, vocab_size: int, begin_id: int = NONE, skip: int = 0) -> Counts:
    """Counts what follows what in rows of tokens.

    Args:
        tokens: (R, W) int64. The first token of a row is a context only.
        order: Tokens in the longest n-grams, at least 1.
        vocab_size: V.
        begin_id: The token that begins a document.
        skip: How many further tokens of each row are contexts only, because something else counts them.
    """
    following = tokens[:, 1:]
    counted = np.broadcast_to(np.arange(following.shape[1]) >= skip, following.shape)
    keys, counts = [np.arange(vocab_size)], [np.bincount(following[counted], minlength=vocab_size)]
    context = tokens
    for _ in range(2, order + 1):
        known = context[:, :-1] != NONE
        rows, places = np.unique(context[:, :-1][known] * vocab_size + following[known], return_inverse=True)
        keys.append(rows)
        counts.append(np.bincount(places[counted[known]], minlength=len(rows)))
        context = np.full_like(tokens, NONE)
        context[:, 1:][known] = places
        context[tokens == begin_id] = NONE
    return Counts(vocab_size, begin_id, tuple(keys), tuple(counts))


def merge(one: Counts, other: Counts) -> Counts:
    """Adds up the counts of two texts.

    Args:
        one: With the order and vocabulary of the other.
        other: What to add.
    """
    keys, counts = [one.keys[0]], [one.counts[0] + other.counts[0]]
    of_one, of_other = one.keys[0], other.keys[0]  # where each row of the level before has gone
    for level in range(1, one.order):
        moved = [of_one[one.parents(level + 1)], of_other[other.parents(level + 1)]]
        last = [source.keys[level] % one.vocab_size for source in (one, other)]
        both = [parent * one.vocab_size + token for parent, token in zip(moved, last, strict=True)]
        rows, places = np.unique(np.concatenate(both), return_inverse=True)
        of_one, of_other = places[: len(both[0])], places[len(both[0]) :]
        total = np.zeros(len(rows), np.int64)
        total[of_one] += one.counts[level]
        total[of_other] += other.counts[level]
        keys.append(rows)
        counts.append(total)
    return Counts(one.vocab_size, one.begin_id, tuple(keys), tuple(counts))
