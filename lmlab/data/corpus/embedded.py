"""The texts that come with lmlab, as corpora."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lmlab.data.corpus.base import Corpus, Document
from lmlab.data.corpus.jsonl import JsonlCorpus
from lmlab.data.corpus.tuples import TupleCorpus
from lmlab.data.embedded import EMBEDDED, embedded_path

TUPLES = {"handbook": ("text", "translation", "beside")}
"""Embedded texts that are tuples, and their fields."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedCorpus(Corpus):
    """A text that comes with lmlab.

    Args:
        name: `austen` (six novels, English, 4.0 M characters), `sanguo` (三国演义 and 论语, Chinese, 0.6 M), `songci` (宋词, Chinese,
            1.8 M); or `handbook`, tuples of an English paragraph, its Chinese translation, and a Chinese paragraph that stands beside it.
    """

    name: Literal["austen", "sanguo", "songci", "handbook"]

    def __post_init__(self) -> None:
        """Checks the name."""
        embedded_path(self.name)

    def documents(self) -> Iterator[Document]:
        """One document a chapter, poem or tuple."""
        return self._file().documents()

    def fingerprint(self) -> str:
        """Content of the file."""
        return self._file().fingerprint()

    def describe(self) -> dict[str, Any]:
        """Name and what it is."""
        return {"kind": type(self).__name__, "name": self.name, "title": EMBEDDED[self.name]}

    def _file(self) -> JsonlCorpus | TupleCorpus:
        paths = (str(embedded_path(self.name)),)
        return TupleCorpus(paths=paths, fields=TUPLES[self.name]) if self.name in TUPLES else JsonlCorpus(paths=paths)
