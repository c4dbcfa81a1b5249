"""Shards to a store: duplicates dropped, splits dealt out, arrays written in a stream with their checksums."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.cache import write_atomic
from lmlab.config import to_plain
from lmlab.data.cleaning import CleaningCounts
from lmlab.data.store.reading import FORMAT, HEADER, FileRecord, StoreConfig, StoreHeader, file_sha256
from lmlab.data.store.shards import read_shard, token_dtype
from lmlab.data.store.splits import DROPPED, SPLITS, assign_splits, first_of_each


@dataclass(frozen=True, kw_only=True)
class StoreIdentity:
    """What a store is made of; its fingerprint names the folder.

    Args:
        fingerprint: Of everything below.
        corpus_fingerprint: Of the documents.
        cleaning_fingerprint: Of the cleaning settings.
        tokenizer_fingerprint: Of the tokenizer.
        vocab_size: Of the tokenizer.
        corpus: What the corpus says about itself.
    """

    fingerprint: str
    corpus_fingerprint: str
    cleaning_fingerprint: str
    tokenizer_fingerprint: str
    vocab_size: int
    corpus: dict[str, Any]


def assign_documents(files: Sequence[Path], config: StoreConfig, drop_duplicates: bool) -> np.ndarray:
    """The split of every document of all shards.

    Args:
        files: Shards in their order.
        config: Shares of the splits.
        drop_duplicates: Whether later copies are dropped.

    Returns:
        (D,) int8, indices into `SPLITS`, or `DROPPED`.
    """
    parts = [read_shard(file, ["hashes", "repeats"]) for file in files]
    hashes = np.concatenate([part["hashes"] for part in parts])
    repeats = np.concatenate([part["repeats"] for part in parts])
    splits = assign_splits(hashes, config.val_share, config.test_share, config.split_seed)
    if drop_duplicates:
        splits[~first_of_each(hashes, repeats)] = DROPPED
    return splits


def merge_shards(files: Sequence[Path], splits: np.ndarray, folder: Path, identity: StoreIdentity, counts: CleaningCounts) -> None:
    """Writes the splits, one folder each.

    Args:
        files: Shards in their order.
        splits: (D,) from `assign_documents`.
        folder: Where the folders go.
        identity: For the headers.
        counts: For the headers.
    """
    with ExitStack() as stack:
        writers = [_SplitWriter(folder / name, identity.vocab_size, stack) for name in SPLITS]
        first = 0
        for file in files:
            shard = read_shard(file)
            part = splits[first : first + len(shard["lengths"])]
            first += len(part)
            for index, writer in enumerate(writers):
                writer.add(shard, part == index)
        for name, writer in zip(SPLITS, writers, strict=True):
            writer.finish(name, identity, counts)


class _SplitWriter:
    """Collects the documents of one split."""

    def __init__(self, folder: Path, vocab_size: int, stack: ExitStack) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.largest_id = -1
        self.total_bytes = 0
        self.parts: Counter[str] = Counter()
        self.arrays = {
            "tokens": _ArrayWriter(folder / "tokens.npy", token_dtype(vocab_size), stack),
            "offsets": _ArrayWriter(folder / "offsets.npy", np.dtype(np.int64), stack),
            "num_bytes": _ArrayWriter(folder / "num_bytes.npy", np.dtype(np.int64), stack),
            "sentences": _ArrayWriter(folder / "sentences.npy", np.dtype(np.int64), stack),
        }
        self.arrays["offsets"].write(np.zeros(1))

    def add(self, shard: dict[str, np.ndarray], is_mine: np.ndarray) -> None:
        """Takes some documents of a shard; `is_mine` is (D,) bool."""
        if not is_mine.any():
            return
        begin = self.arrays["tokens"].size
        of_token = np.repeat(is_mine, shard["lengths"])
        tokens = shard["tokens"][of_token]
        place = np.cumsum(of_token) - 1 + begin  # where a token of mine goes
        self.arrays["tokens"].write(tokens)
        self.arrays["offsets"].write(begin + np.cumsum(shard["lengths"][is_mine]))
        self.arrays["num_bytes"].write(shard["num_bytes"][is_mine])
        self.arrays["sentences"].write(place[shard["sentences"][of_token[shard["sentences"]]]])
        self.largest_id = max(self.largest_id, int(tokens.max()))
        self.total_bytes += int(shard["num_bytes"][is_mine].sum())
        names, sizes = shard["parts"][is_mine], shard["num_characters"][is_mine]
        for part in filter(None, np.unique(names).tolist()):
            self.parts[part] += int(sizes[names == part].sum())

    def finish(self, name: str, identity: StoreIdentity, counts: CleaningCounts) -> None:
        """Writes the header, last of all."""
        header = StoreHeader(
            format=FORMAT,
            split=name,
            fingerprint=identity.fingerprint,
            corpus_fingerprint=identity.corpus_fingerprint,
            cleaning_fingerprint=identity.cleaning_fingerprint,
            tokenizer_fingerprint=identity.tokenizer_fingerprint,
            vocab_size=identity.vocab_size,
            num_documents=self.arrays["num_bytes"].size,
            num_tokens=self.arrays["tokens"].size,
            num_sentences=self.arrays["sentences"].size,
            num_bytes=self.total_bytes,
            dtype=self.arrays["tokens"].dtype.name,
            largest_id=self.largest_id,
            counts=counts,
            parts=dict(self.parts),
            files={f"{array}.npy": writer.finish() for array, writer in self.arrays.items()},
            corpus=identity.corpus,
        )
        text = json.dumps(to_plain(header), indent=1, ensure_ascii=False)
        # what is no text in a file's name is written as JSON's own escape
        write_atomic(self.folder / HEADER, text.encode("utf-8", "backslashreplace"))


class _ArrayWriter:
    """Appends to a one-dimensional .npy file whose length is not known beforehand."""

    def __init__(self, file: Path, dtype: np.dtype[Any], stack: ExitStack) -> None:
        self.file, self.dtype, self.size = file, dtype, 0
        self._stream = stack.enter_context(file.open("w+b"))
        self._write_head()

    def write(self, values: np.ndarray) -> None:
        self._stream.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.size += len(values)

    def finish(self) -> FileRecord:
        self._stream.seek(0)
        self._write_head()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return FileRecord(num_bytes=self.file.stat().st_size, sha256=file_sha256(self.file))

    def _write_head(self) -> None:
        # numpy pads this header with room for any length, so that the second one takes exactly the place of the first
        np.lib.format.write_array_header_1_0(self._stream, {"descr": self.dtype.str, "fortran_order": False, "shape": (self.size,)})
