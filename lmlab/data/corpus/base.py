"""What every corpus is: documents in a fixed order, each of which knows where it comes from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from lmlab.data.cleaning import CleaningConfig


class Document(NamedTuple):
    """One document, as it was found.

    Args:
        text: The text. Bytes that are no UTF-8 stand in it as lone surrogates U+DC80 to U+DCFF (Python's `surrogateescape`), and
            are dealt with by `lmlab.data.cleaning`.
        source: `file:line` or `file row N`, for messages.
        repeat: 0, or another number for each further time that a mixture gives the document; a repeat on purpose is no duplicate.
        part: Part of the mixture that it comes from; empty without a mixture.
        by_line: Whether its lines are several texts that go together, instead of one text with sentences.
    """

    text: str
    source: str
    repeat: int = 0
    part: str = ""
    by_line: bool = False


class Corpus(ABC):
    """A source of documents. Leaves are frozen dataclasses of plain values."""

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Reads the documents one by one, in the same order every time; memory does not grow with the corpus.

        Raises:
            DataError: On a file that is missing or broken, with its name and line.
        """

    def documents_for(self, cleaning: CleaningConfig) -> Iterator[Document]:
        """The documents, uncleaned, for a reader who will clean them.

        Only a mixture has to know: it counts what is left of them.

        Args:
            cleaning: How they will be cleaned.
        """
        return self.documents()

    def characters_at_most(self) -> float:
        """A number of characters the documents cannot exceed, if it can be told without reading them; else infinity."""
        return math.inf

    @abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits that change when the documents do; file names and places do not count."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What run records say about the corpus, as JSON values."""


def place_of(description: Mapping[str, Any]) -> str:
    """Where a corpus lies, for messages.

    Args:
        description: From `Corpus.describe`.

    Returns:
        Its files or its name; those of all parts of a mixture.
    """
    if isinstance(parts := description.get("parts"), Mapping):
        return "; ".join(f"{name}: {place_of(part)}" for name, part in parts.items())
    paths = description.get("paths") or description.get("data_files") or [description.get("name") or description.get("kind", "corpus")]
    return ", ".join(map(str, paths))
