"""Parquet files, one of whose columns is the text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.config import fingerprint, require
from lmlab.data.corpus.base import Corpus, Document
from lmlab.data.corpus.files import describe_files, files_fingerprint, find_files, path_tuple
from lmlab.data.corpus.jsonl import text_field
from lmlab.errors import DataError, nearest

_ROWS = 256  # rows decoded at a time, few enough for rows of a megabyte


@dataclass(frozen=True, kw_only=True)
class ParquetCorpus(Corpus):
    """Parquet files; needs the package pyarrow.

    Args:
        paths: Files or globs.
        field: Name of the column that holds the text.
    """

    paths: tuple[str, ...]
    field: str = "text"

    def __post_init__(self) -> None:
        """Checks the settings."""
        object.__setattr__(self, "paths", path_tuple(self.paths))
        require(bool(self.paths), self, "paths", "a corpus needs at least one file", "name a file or a glob")
        require(bool(self.field), self, "field", "the text has to be in some column", "the usual name is 'text'")

    def documents(self) -> Iterator[Document]:
        """One document a row."""
        for path in find_files(self.paths):
            yield from self._rows(path)

    def fingerprint(self) -> str:
        """Content of the files and name of the column."""
        return fingerprint(["parquet", files_fingerprint(find_files(self.paths)), self.field])

    def describe(self) -> dict[str, Any]:
        """Settings, and the number and size of the files."""
        return describe_files(self, self.paths)

    def _rows(self, path: Path) -> Iterator[Document]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            remedy = "pip install 'lmlab[parquet]', or convert the file to JSON lines"
            raise DataError("reading Parquet needs pyarrow", where=str(path), why=str(error), remedy=remedy) from error
        number = 0
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                if self.field not in file.schema_arrow.names:
                    remedy = nearest(self.field, file.schema_arrow.names)
                    raise DataError(f"there is no column '{self.field}'", where=str(path), why="the text is read from it", remedy=remedy)
                for batch in file.iter_batches(batch_size=_ROWS, columns=[self.field]):
                    for value in _values(batch.column(0)):
                        number += 1
                        source = f"{path} row {number}"
                        yield Document(text_field({self.field: value}, self.field, source), source)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{path.name} cannot be read", where=f"{path} row {number + 1}", why=str(error), remedy="fetch it again"
            ) from error


def _values(column: Any) -> list[Any]:
    """Python values of an Arrow array; bytes of a string that are no UTF-8 become lone surrogates, as in a text file."""
    from pyarrow import binary, large_binary, types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_large_string(column.type):
        column = column.cast(large_binary())
    elif types.is_string(column.type):
        column = column.cast(binary())
    else:
        return column.to_pylist()
    return [value if value is None else value.decode("utf-8", "surrogateescape") for value in column.to_pylist()]
