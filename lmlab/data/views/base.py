"""What all views share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np

from lmlab.data.batch import Example, Feed
from lmlab.data.store import TokenStore
from lmlab.errors import DataError
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
        self.words: Literal["none", "pieces", "words"] = feed.word_starts

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

    def draw(self, index: int, position: int, seed: int) -> Example:
        """One example at its place in a run; views with random examples decide here what stands in it.

        Args:
            index: From 0 to `len(self) - 1`.
            position: n, how many examples came before it since the start of the run, or its index in an evaluation.
            seed: Of the run; with position and index it decides all randomness.
        """
        return self[index]._replace(position=position)

    @property
    @abstractmethod
    def num_raw_tokens(self) -> int:
        """Corpus tokens in all examples, special ones not counted."""

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")

    def _word_starts(self, ids: np.ndarray, text_starts: np.ndarray) -> np.ndarray | None:
        """(T,) bool; a text always begins with a word, whatever its first token looks like."""
        words = self.words
        if words == "none":
            return None
        starts = np.array(self.tokenizer.word_starts(ids, words), dtype=bool)
        starts[text_starts] = True
        return starts


def too_short(store: TokenStore, why: str, remedy: str = "use a longer text or a shorter length") -> DataError:
    """The error of a split that gives no example.

    Args:
        store: The split.
        why: What is missing.
        remedy: What to do but hold out more.
    """
    split = store.header.split
    if split != "train":
        remedy += f", or hold out more: raise store.{split}_share (documents are held out whole)"
    return DataError(f"the {split} split is too short for this view", where=str(store.path), why=why, remedy=remedy)
