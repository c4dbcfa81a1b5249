"""Shards: stretches of a corpus that are cleaned and tokenised in one go, each written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmlab.cache import atomic_file
from lmlab.config import from_dict, to_plain
from lmlab.data.cleaning import CleaningConfig, CleaningCounts, clean, text_hash
from lmlab.data.corpus.base import Document
from lmlab.data.store.encoding import Encoded, Encoder
from lmlab.errors import DataError
from lmlab.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class InterruptedBuildError(DataError):
    """A build that stopped for a reason outside the text: what was finished before can be used again."""


class RawShard(NamedTuple):
    """A stretch of a corpus, as it was read.

    Args:
        number: Running number, from 0.
        documents: Documents in their order.
        num_characters: Sum over the documents.
    """

    number: int
    documents: list[Document]
    num_characters: int


class Shard(NamedTuple):
    """A tokenised stretch: D documents, T tokens, S sentences.

    Args:
        tokens: (T,) uint16 or uint32.
        lengths: (D,) int64, tokens of each document, none of them 0.
        num_bytes: (D,) int64, UTF-8 bytes of each document.
        num_characters: (D,) int64, characters of each document.
        hashes: (D,) uint64, `text_hash` of each document.
        repeats: (D,) int64, from `Document.repeat`.
        parts: (D,) strings, from `Document.part`.
        sentences: (S,) int64, tokens at which sentences begin.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    num_bytes: np.ndarray
    num_characters: np.ndarray
    hashes: np.ndarray
    repeats: np.ndarray
    parts: np.ndarray
    sentences: np.ndarray


def cut_shards(documents: Iterable[Document], shard_characters: int) -> Iterator[RawShard]:
    """Groups documents, in their order, into shards of about equal size.

    Args:
        documents: Documents of a corpus.
        shard_characters: A shard ends with the document that reaches it.
    """
    group: list[Document] = []
    number = size = 0
    for document in documents:
        group.append(document)
        size += len(document.text) + 1  # empty documents need memory as well
        if size >= shard_characters:
            yield RawShard(number, group, size)
            group, size, number = [], 0, number + 1
    if group:
        yield RawShard(number, group, size)


@dataclass(frozen=True)
class ShardWriter:
    """Cleans and tokenises shards into files; picklable, so that it can work in another process.

    Args:
        folder: Where the files go.
        tokenizer: The tokenizer.
        cleaning: How to clean.
    """

    folder: Path
    tokenizer: Tokenizer
    cleaning: CleaningConfig

    def write(self, raw: RawShard, encoder: Encoder) -> CleaningCounts:
        """Makes one shard.

        Args:
            raw: The documents.
            encoder: Of the same tokenizer; made once for each process.

        Returns:
            What the cleaning did.

        Raises:
            DataError: If `cleaning.invalid` is `fail` and something is.
            InterruptedBuildError: If the file cannot be written.
        """
        counts = CleaningCounts()
        documents = list(clean(raw.documents, self.cleaning, counts))
        encoded = list(encoder.encode([document.text for document in documents], [document.by_line for document in documents]))
        shard = _join(documents, encoded, self.tokenizer.vocab_size)
        counts.num_empty += len(documents) - len(shard.lengths)
        counts.num_kept -= len(documents) - len(shard.lengths)
        counts.num_bytes = int(shard.num_bytes.sum())
        note = json.dumps({"counts": to_plain(counts), "marks": _marks(raw)})
        try:
            with atomic_file(shard_file(self.folder, raw.number)) as stream:
                np.savez(stream, **shard._asdict(), note=np.frombuffer(note.encode(errors="surrogateescape"), np.uint8))  # type: ignore[arg-type]
        except DataError as error:
            raise InterruptedBuildError(error.what, where=error.where, why=error.why, remedy=error.remedy) from error
        return counts

    def finished(self, raw: RawShard) -> CleaningCounts | None:
        """What the cleaning did to a shard that an interrupted build has left behind; None if it has to be made.

        Args:
            raw: The documents.
        """
        file = shard_file(self.folder, raw.number)
        if not file.exists():
            return None
        try:
            arrays = read_shard(file, [*Shard._fields, "note"])  # all of them, because only what is read is checked
        except InterruptedBuildError as error:
            log.warning("%s; it is made again", error.what)
            return None
        note = json.loads(arrays["note"].tobytes().decode(errors="surrogateescape"))
        # a corpus on another machine may have changed since, and shards may have been cut to another size
        return from_dict(CleaningCounts, note["counts"]) if note["marks"] == _marks(raw) else None


def shard_file(folder: Path, number: int) -> Path:
    """Name of a shard's file."""
    return folder / f"shard-{number:06d}.npz"


def read_shard(file: Path, names: Sequence[str] = Shard._fields) -> dict[str, np.ndarray]:
    """Arrays of a shard.

    Args:
        file: From `shard_file`.
        names: Fields of `Shard` to read; the others cost nothing.

    Raises:
        InterruptedBuildError: If the file is damaged.
    """
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        what, remedy = f"{file.name} of an unfinished build is damaged", "start again: it is made anew, and the others are kept"
        raise InterruptedBuildError(what, where=str(file), why=str(error), remedy=remedy) from error


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds every id.

    Args:
        vocab_size: V.
    """
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def _marks(raw: RawShard) -> list[Any]:
    digest = hashlib.blake2b(digest_size=16)
    for document in raw.documents:
        text = document.text.encode("utf-8", "surrogatepass")
        digest.update(f"{document.repeat} {document.part} {document.by_line} {len(text)} ".encode("utf-8", "surrogatepass"))
        digest.update(text)
    return [raw.documents[0].source, raw.documents[-1].source, len(raw.documents), digest.hexdigest()]


def _join(documents: list[Document], encoded: list[Encoded], vocab_size: int) -> Shard:
    pairs = [(document, code) for document, code in zip(documents, encoded, strict=True) if len(code.ids)]
    lengths = np.array([len(code.ids) for _, code in pairs], np.int64)
    begins = np.cumsum(lengths) - lengths
    sentences = [code.sentences + begin for (_, code), begin in zip(pairs, begins, strict=True)]
    ids = np.concatenate([code.ids for _, code in pairs]) if pairs else np.zeros(0, np.int32)
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        why = f"the tokenizer gave the id {ids.max()}, its vocabulary has {vocab_size} tokens"
        raise DataError("a token is outside the vocabulary", where=documents[0].source, why=why, remedy="repair the tokenizer")
    return Shard(
        tokens=ids.astype(token_dtype(vocab_size)),
        lengths=lengths,
        num_bytes=np.array([code.num_bytes for _, code in pairs], np.int64),
        num_characters=np.array([len(document.text) for document, _ in pairs], np.int64),
        hashes=np.array([text_hash(document.text) for document, _ in pairs], np.uint64),
        repeats=np.array([document.repeat for document, _ in pairs], np.int64),
        parts=np.array([document.part for document, _ in pairs], np.str_),
        sentences=np.concatenate(sentences).astype(np.int64) if sentences else np.zeros(0, np.int64),
    )
