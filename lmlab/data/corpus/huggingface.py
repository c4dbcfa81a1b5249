"""Hugging Face data sets, read as a stream."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.config import fingerprint, require, to_plain
from lmlab.data.corpus.base import Corpus, Document
from lmlab.data.corpus.files import files_fingerprint, find_files, path_tuple
from lmlab.data.corpus.jsonl import text_field
from lmlab.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HuggingFaceCorpus(Corpus):
    """A data set of the Hugging Face hub, or one that `datasets` makes from files; needs the package datasets.

    Rows are streamed: nothing is downloaded as a whole. The fingerprint is made of the settings and of the content of files on this
    machine. What lies on the hub cannot be hashed without reading it, so name a `revision` for results that can be repeated.

    Args:
        name: `owner/name` on the hub, or a builder of `datasets` such as `json`.
        config: Configuration of the data set; None for its only one.
        split: Which part of it.
        field: Name of the field that holds the text.
        revision: Commit of the data set; None for the newest.
        data_files: Files or globs, for a builder.
    """

    name: str
    config: str | None = None
    split: str = "train"
    field: str = "text"
    revision: str | None = None
    data_files: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Checks the settings."""
        if self.data_files is not None:
            object.__setattr__(self, "data_files", path_tuple(self.data_files))
        require(bool(self.name), self, "name", "a data set has a name", "such as 'roneneldan/TinyStories'")

    def documents(self) -> Iterator[Document]:
        """One document a row."""
        place = f"hf:{self.name}" + (f":{self.config}" if self.config else "")
        rows = iter(self._load(place))
        for number in itertools.count(1):
            source = f"{place} row {number}"
            try:
                row = next(rows, None)
            except Exception as error:  # of the package, of what it reads with, or of the network
                why, remedy = f"{type(error).__name__}: {error}", "check the data set at this row, and the network"
                raise DataError("a row cannot be read", where=source, why=why, remedy=remedy) from error
            if row is None:
                return
            yield Document(text_field(dict(row), self.field, source), source)

    def fingerprint(self) -> str:
        """The settings, and the content of local files; see the class about `revision`."""
        if self.revision is None and self.data_files is None:
            log.warning("%s has no revision: if its owner changes it, the old text goes on being used from the cache", self.name)
        settings = json.dumps(to_plain(self), sort_keys=True)  # in ASCII, because a file name need not be UTF-8
        files = self._local_files()
        return fingerprint(["huggingface", settings, *([files_fingerprint(files)] if files else [])])

    def describe(self) -> dict[str, Any]:
        """Settings."""
        return {"kind": type(self).__name__, **to_plain(self)}

    def _local_files(self) -> list[Path]:
        """Files on this machine that the rows are read from; none for a data set of the hub."""
        folder = Path(self.name)
        if folder.is_dir():
            return sorted(path for path in folder.rglob("*") if path.is_file())
        if "/" in self.name or self.data_files is None:  # of the hub, where `data_files` are names in its repository
            return []
        return find_files([file for file in self.data_files if "://" not in file])

    def _load(self, place: str) -> Any:
        try:
            import datasets
        except ImportError as error:
            remedy = "pip install 'lmlab[hf]', or use files"
            raise DataError(
                "reading Hugging Face data sets needs the package datasets", where=place, why=str(error), remedy=remedy
            ) from error
        files = list(self.data_files) if self.data_files is not None else None
        try:
            return datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, data_files=files, streaming=True, trust_remote_code=None
            )
        except (ValueError, OSError) as error:
            remedy = "check name, config and split on huggingface.co/datasets, and that the hub can be reached"
            raise DataError(f"cannot open the data set '{self.name}'", where=place, why=str(error), remedy=remedy) from error
