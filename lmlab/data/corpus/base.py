"""What every corpus is: documents in a fixed order, each of which knows where it comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple


class Document(NamedTuple):
    """One document, as it was found.

    Args:
        text: The text. Bytes that are no UTF-8 stand in it as lone surrogates U+DC80 to U+DCFF (Python's `surrogateescape`), and
            are dealt with by `lmlab.data.cleaning`.
        source: `file:line` or `file row N`, for messages.
        repeat: 0, or another number for each further time that a mixture gives the document; a repeat on purpose is no duplicate.
    """

    text: str
    source: str
    repeat: int = 0


class Corpus(ABC):
    """A source of documents. Leaves are frozen dataclasses of plain values."""

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Reads the documents one by one, in the same order every time; memory does not grow with the corpus.

        Raises:
            DataError: On a file that is missing or broken, with its name and line.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits that change when the documents do; file names and places do not count."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What run records say about the corpus, as JSON values."""
