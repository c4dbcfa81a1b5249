"""JSON lines: one JSON object a line, one of whose fields is the text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmlab.config import fingerprint, require
from lmlab.data.corpus.base import Corpus, Document
from lmlab.data.corpus.files import describe_files, files_fingerprint, find_files, most_characters, open_binary, path_tuple
from lmlab.errors import DataError, nearest

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class JsonlCorpus(Corpus):
    """JSON lines (`.jsonl`, also with `.gz`).

    Args:
        paths: Files or globs.
        field: Name of the field that holds the text.
    """

    paths: tuple[str, ...]
    field: str = "text"

    def __post_init__(self) -> None:
        """Checks the settings."""
        object.__setattr__(self, "paths", path_tuple(self.paths))
        require(bool(self.paths), self, "paths", "a corpus needs at least one file", "name a file or a glob")
        require(bool(self.field), self, "field", "the text has to be in some field", "the usual name is 'text'")

    def documents(self) -> Iterator[Document]:
        """One document for each line that is not blank."""
        for row, source in read_rows(self.paths):
            yield Document(text_field(row, self.field, source), source)

    def characters_at_most(self) -> float:
        """One for each byte of the files, unless some are packed."""
        return most_characters(find_files(self.paths))

    def fingerprint(self) -> str:
        """Content of the files and name of the field."""
        return fingerprint(["jsonl", files_fingerprint(find_files(self.paths)), self.field])

    def describe(self) -> dict[str, Any]:
        """Settings, and the number and size of the files."""
        return describe_files(self, self.paths)


def read_rows(paths: Sequence[str]) -> Iterator[tuple[Any, str]]:
    """The lines of files that are not blank, read as JSON, and where each stands.

    Args:
        paths: Files or globs.

    Raises:
        DataError: If a line is not valid JSON.
    """
    for path in find_files(paths):
        with open_binary(path) as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                if not line.isspace() and line:
                    source = f"{path}:{number}"
                    yield _parse(line, source), source


def text_field(row: Any, field: str, source: str) -> str:
    """The text of a row.

    Args:
        row: A mapping from field names to values.
        field: Which one is the text.
        source: Where the row stands, for messages.

    Raises:
        DataError: If there is no such field, or it holds something else than a string. None counts as an empty text.
    """
    if not isinstance(row, dict):
        remedy = 'write one object per line, such as {"text": "..."}; an array over several lines is not JSON lines'
        raise DataError(f"expected a JSON object, found {_kind(row)}", where=source, remedy=remedy)
    if field not in row:
        raise DataError(f"there is no field '{field}'", where=source, why="the text is read from it", remedy=nearest(field, map(str, row)))
    text = row[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DataError(f"field '{field}' holds {_kind(text)}", where=source, why="a document is a string", remedy="name another field")
    return text


def _parse(line: bytes, source: str) -> Any:
    try:
        return json.loads(line.decode("utf-8", "surrogateescape"))
    except ValueError as error:
        remedy = (
            "repair or remove the line" if line.lstrip()[:1] == b"{" else "write one JSON object per line, without an array around them"
        )
        raise DataError("a line is not valid JSON", where=source, why=str(error), remedy=remedy) from error
    except RecursionError as error:
        raise DataError("a line is nested too deeply", where=source, why=str(error), remedy="remove the line") from error


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
