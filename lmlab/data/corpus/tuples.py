"""Texts that go together, in the fields of JSON lines: a text and its translation, an anchor with a positive and a hard negative."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lmlab.config import fingerprint, require
from lmlab.data.corpus.base import Corpus, Document
from lmlab.data.corpus.files import describe_files, files_fingerprint, find_files, most_characters, path_tuple
from lmlab.data.corpus.jsonl import read_rows, text_field
from lmlab.errors import DataError

_LINE_BREAKS = re.compile(r"[\r\n]+")


@dataclass(frozen=True, kw_only=True)
class TupleCorpus(Corpus):
    """JSON lines with a text in each of several fields; each line of the file is one document of as many lines as there are fields.

    The first field is the text itself, the second what belongs to it (a paraphrase, a translation, an answer), the third, if there is
    one, what is like it and does not belong to it.

    Args:
        paths: Files or globs (`.jsonl`, also with `.gz`).
        fields: Names of the fields, in this order.
    """

    paths: tuple[str, ...]
    fields: tuple[str, ...] = ("text", "positive")

    def __post_init__(self) -> None:
        """Checks the settings."""
        object.__setattr__(self, "paths", path_tuple(self.paths))
        require(bool(self.paths), self, "paths", "a corpus needs at least one file", "name a file or a glob")
        one_name_each = len(set(self.fields)) == len(self.fields) and all(self.fields)
        require(one_name_each, self, "fields", "each text has a field of its own", "name each field once")
        require(len(self.fields) in (2, 3), self, "fields", "a text, what belongs to it, and perhaps what does not", "name two or three")

    def documents(self) -> Iterator[Document]:
        """One document for each line that is not blank."""
        for row, source in read_rows(self.paths):
            texts = [_LINE_BREAKS.sub(" ", text_field(row, field, source)).strip() for field in self.fields]
            if not all(texts):
                field = self.fields[texts.index("")]
                raise DataError(f"field '{field}' is empty", where=source, why="it is compared with others", remedy="remove the line")
            yield Document("\n".join(texts), source, by_line=True)

    def characters_at_most(self) -> float:
        """One for each byte of the files, unless some are packed."""
        return most_characters(find_files(self.paths))

    def fingerprint(self) -> str:
        """Content of the files and names of the fields."""
        return fingerprint(["tuples", files_fingerprint(find_files(self.paths)), list(self.fields)])

    def describe(self) -> dict[str, Any]:
        """Settings, and the number and size of the files."""
        return describe_files(self, self.paths)
