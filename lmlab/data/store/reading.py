"""The tokenised corpus on disk: opened in no time, mapped instead of read, and never used with the wrong tokenizer.

A store is a folder `<cache>/stores/<fingerprint>/` with one folder for each split, and in each of them:

- `tokens.npy`: (num_tokens,) uint16 or uint32, all documents one after the other, without special tokens.
- `offsets.npy`: (num_documents + 1,) int64, where each document begins and the last one ends.
- `num_bytes.npy`: (num_documents,) int64, UTF-8 bytes of each cleaned document.
- `sentences.npy`: (num_sentences,) int64, tokens at which sentences begin; each document begins one.
- `header.json`: sizes, checksums, fingerprints and counts.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lmlab.config import check_choices, from_dict, require
from lmlab.data.cleaning import CleaningCounts
from lmlab.errors import ConfigError, DataError

FORMAT = 3
"""Number of the layout above, and of the rules that find sentences; another one is another fingerprint, so old stores are left alone."""

ARRAYS = ("tokens", "offsets", "num_bytes", "sentences")
HEADER = "header.json"

_CHUNK = 2**22
_TOKENS_LOOKED_AT = 2**27  # at opening: some ten milliseconds, where a larger store would make its user wait


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """How the corpus is split and tokenised.

    Args:
        val_share: Share of documents held out for validation, chosen by a hash of their text; at least one if there are two.
        test_share: Share of documents held out for the test; at least one if there are three. 0 for none.
        split_seed: Another one holds out other documents.
        num_processes: Processes that tokenise; None for one per core. The result does not depend on it.
        shard_characters: Text tokenised in one go. Memory is some ten times this for each process, and what a kill costs at most.
        verify: What is checked when a store is opened: the `sizes` of the files and that no token is too large (in the first
            134 million), or also their checksums (`full`).
    """

    val_share: float = 0.05
    test_share: float = 0.05
    split_seed: int = 0
    num_processes: int | None = None
    shard_characters: int = 2**23
    verify: Literal["sizes", "full"] = "sizes"

    def __post_init__(self) -> None:
        """Checks the settings."""
        check_choices(self)
        rule = "a held-out share lies between 0 and 0.5"
        require(0 <= self.val_share <= 0.5, self, "val_share", rule, "0.05 is enough for most corpora")
        require(0 <= self.test_share <= 0.5, self, "test_share", rule, "0.05 is enough for most corpora; 0 for no test split")
        require(self.val_share + self.test_share < 1, self, "test_share", "something must be left to train on", "hold out less")
        require(self.num_processes is None or self.num_processes >= 1, self, "num_processes", "work needs a process", "1 or more, or none")
        require(self.shard_characters >= 1024, self, "shard_characters", "tiny shards cost more than they save", "set 1024 or more")


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What a file of a store must be.

    Args:
        num_bytes: Its size.
        sha256: Hash of its content, 64 hex digits.
    """

    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class StoreHeader:
    """What a store says about itself.

    Args:
        format: Layout of the folder.
        split: `train`, `val` or `test`.
        fingerprint: Name of the store: corpus, cleaning, tokenizer and splits together.
        corpus_fingerprint: Of the documents.
        cleaning_fingerprint: Of the cleaning settings.
        tokenizer_fingerprint: Of the tokenizer.
        vocab_size: Of the tokenizer.
        num_documents: In this split.
        num_tokens: In this split.
        num_sentences: In this split.
        num_bytes: UTF-8 bytes of text in this split.
        dtype: Of the tokens.
        largest_id: Largest token id in this split; -1 if there is none.
        counts: What the cleaning dropped and repaired, over all splits.
        parts: Characters of this split by the part of the mixture that they come from; empty without a mixture.
        files: The arrays.
        corpus: What the corpus says about itself.
    """

    format: int
    split: str
    fingerprint: str
    corpus_fingerprint: str
    cleaning_fingerprint: str
    tokenizer_fingerprint: str
    vocab_size: int
    num_documents: int
    num_tokens: int
    num_sentences: int
    num_bytes: int
    dtype: str
    largest_id: int
    counts: CleaningCounts
    parts: dict[str, int]
    files: dict[str, FileRecord]
    corpus: dict[str, Any]


class TokenStore:
    """One split of a tokenised corpus. Cheap to open and to pickle: the arrays stay on disk.

    Args:
        path: Folder of the split.
        header: Its checked header.
    """

    def __init__(self, path: Path, header: StoreHeader) -> None:
        self.path, self.header = path, header

    @classmethod
    def open(cls, path: str | Path, verify: Literal["sizes", "full"] = "sizes") -> TokenStore:
        """Opens one split and checks that nothing is missing.

        Args:
            path: Folder of the split.
            verify: `sizes` compares the files' sizes and the largest token with the header; `full` reads all of them and compares
                checksums as well.

        Raises:
            DataError: If a file is missing, truncated or changed, or the layout is another one.
        """
        path = Path(path)
        header = _read_header(path)
        for name, record in header.files.items():
            _verify(path, path / name, record, verify)
        if header.largest_id >= header.vocab_size:
            why = f"the vocabulary has {header.vocab_size} tokens, the largest id is {header.largest_id}"
            raise DataError("the store does not fit its own tokenizer", where=str(path), why=why, remedy=_rebuild(path))
        store = cls(path, header)
        store._check_largest_id()
        return store

    @property
    def fingerprint(self) -> str:
        """Name of the store; the same for all its splits."""
        return self.header.fingerprint

    @property
    def num_documents(self) -> int:
        """Documents in this split."""
        return self.header.num_documents

    @property
    def num_tokens(self) -> int:
        """Tokens in this split, without special ones."""
        return self.header.num_tokens

    @cached_property
    def tokens(self) -> np.ndarray:
        """(num_tokens,) uint16 or uint32, mapped, read-only."""
        return self._map("tokens")

    @cached_property
    def offsets(self) -> np.ndarray:
        """(num_documents + 1,) int64, mapped: document d is `tokens[offsets[d]:offsets[d + 1]]`."""
        return self._map("offsets")

    @cached_property
    def num_bytes(self) -> np.ndarray:
        """(num_documents,) int64, mapped: UTF-8 bytes of each document's text."""
        return self._map("num_bytes")

    @cached_property
    def sentences(self) -> np.ndarray:
        """(num_sentences,) int64, mapped: tokens at which sentences begin."""
        return self._map("sentences")

    def document(self, index: int) -> np.ndarray:
        """Tokens of one document, a view of `tokens`.

        Args:
            index: From 0 to `num_documents - 1`.

        Raises:
            IndexError: Outside of that.
        """
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def check_tokenizer(self, tokenizer_fingerprint: str) -> None:
        """Refuses a tokenizer that did not make this store.

        Args:
            tokenizer_fingerprint: Of the tokenizer about to be used.

        Raises:
            ConfigError: If it is another one.
        """
        if tokenizer_fingerprint != self.header.tokenizer_fingerprint:
            raise ConfigError(
                "the store was made with another tokenizer",
                where=str(self.path),
                why=f"its tokenizer is {self.header.tokenizer_fingerprint}, this one is {tokenizer_fingerprint}",
                remedy="build_store(corpus, tokenizer) makes the store that fits, or finds it",
            )

    def __reduce__(self) -> tuple[object, ...]:
        """Travels as its path and header."""
        return TokenStore, (self.path, self.header)

    def _check_largest_id(self) -> None:
        largest = int(self.tokens[:_TOKENS_LOOKED_AT].max(initial=0)) if self.num_tokens else -1
        if largest > self.header.largest_id:
            why = f"a token is {largest}, the largest that was written is {self.header.largest_id}"
            raise DataError("tokens.npy has changed since it was written", where=str(self.path), why=why, remedy=_rebuild(self.path))

    def _map(self, name: str) -> np.ndarray:
        # a plain array over the mapping: indexing np.memmap itself costs a microsecond more each time
        return np.asarray(np.load(self.path / f"{name}.npy", mmap_mode="r"))


def _read_header(path: Path) -> StoreHeader:
    file = path / HEADER
    if not file.is_file():
        raise DataError("there is no store", where=str(path), why=f"{HEADER} is missing", remedy="build it with build_store")
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        if plain.get("format") != FORMAT:
            why = f"its layout is number {plain.get('format')}, this version of lmlab reads number {FORMAT}"
            raise DataError("the store is of another version", where=str(file), why=why, remedy=_rebuild(path))
        return from_dict(StoreHeader, plain)
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise DataError("the header of the store is broken", where=str(file), why=str(error), remedy=_rebuild(path)) from error


def _verify(path: Path, file: Path, record: FileRecord, verify: str) -> None:
    size = file.stat().st_size if file.is_file() else None
    if size is None:
        raise DataError(f"{file.name} is missing from the store", where=str(file), remedy=_rebuild(path))
    if size != record.num_bytes:
        why = f"expected {record.num_bytes:,} bytes, found {size:,}"
        what = "truncated" if size < record.num_bytes else "longer than written"
        raise DataError(f"{file.name} is {what}", where=str(file), why=why, remedy=_rebuild(path))
    if verify == "full" and (found := file_sha256(file)) != record.sha256:
        why = f"expected sha256 {record.sha256[:16]}..., found {found[:16]}..."
        raise DataError(f"{file.name} has changed since it was written", where=str(file), why=why, remedy=_rebuild(path))


def file_sha256(file: Path) -> str:
    """Hash of a file's content, 64 hex digits.

    Args:
        file: Any size.
    """
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _rebuild(path: Path) -> str:
    return f"delete the folder {path.parent}; the next run builds it again"
