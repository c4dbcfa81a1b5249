"""Hugging Face data sets, read as a stream."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lmlab.config import fingerprint, require, to_plain
from lmlab.data.corpus.base import Corpus, Document
from lmlab.data.corpus.jsonl import text_field
from lmlab.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HuggingFaceCorpus(Corpus):
    """A data set of the Hugging Face hub, or one that `datasets` makes from files; needs the package datasets.

    Rows are streamed: nothing is downloaded as a whole. The fingerprint is made of the settings, because the content cannot be
    hashed without reading it, so name a `revision` for results that can be repeated.

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
        require(bool(self.name), self, "name", "a data set has a name", "such as 'roneneldan/TinyStories'")

    def documents(self) -> Iterator[Document]:
        """One document a row."""
        place = f"hf:{self.name}" + (f":{self.config}" if self.config else "")
        for number, row in enumerate(self._load(place), start=1):
            source = f"{place} row {number}"
            yield Document(text_field(dict(row), self.field, source), source)

    def fingerprint(self) -> str:
        """The settings; see the class about `revision`."""
        if self.revision is None and self.data_files is None:
            log.warning("%s has no revision: if its owner changes it, the old text goes on being used from the cache", self.name)
        return fingerprint(["huggingface", to_plain(self)])

    def describe(self) -> dict[str, Any]:
        """Settings."""
        return {"kind": type(self).__name__, **to_plain(self)}

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
