"""From a corpus to a store: once, in a stream, on all cores, and resumable.

What happens to a text:
1. `Corpus.documents` reads it, document by document; `cut_shards` groups documents into shards of some megabytes.
2. A process cleans and tokenises a shard, finds its sentences, and writes one file, whole or not at all (`ShardWriter`). A build that
   was killed finds these files and goes on after the last of them.
3. When all shards are there, copies are dropped and documents dealt out to the splits (`assign_documents`).
4. The shards are merged in their order into a temporary folder (`merge_shards`), which gets its name in one step.

Only steps 1 and 2 hold text, and a few shards of it at a time. The result is the same whatever the number of processes.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lmlab.cache import CACHE_VARIABLE, default_cache_dir, locked
from lmlab.config import fingerprint
from lmlab.data.cleaning import CleaningConfig, CleaningCounts
from lmlab.data.corpus.base import Corpus, place_of
from lmlab.data.corpus.files import forget_file_hashes
from lmlab.data.store.encoding import Encoder
from lmlab.data.store.merging import StoreIdentity, assign_documents, merge_shards
from lmlab.data.store.reading import FORMAT, StoreConfig, TokenStore
from lmlab.data.store.shards import InterruptedBuildError, RawShard, ShardWriter, cut_shards, shard_file
from lmlab.data.store.splits import DROPPED, SPLITS
from lmlab.data.store.workers import WorkerPool
from lmlab.errors import DataError, LabError
from lmlab.tokenizer import Tokenizer

log = logging.getLogger(__name__)


def build_store(
    corpus: Corpus,
    tokenizer: Tokenizer,
    config: StoreConfig = StoreConfig(),
    cleaning: CleaningConfig = CleaningConfig(),
    cache_dir: Path | None = None,
) -> dict[str, TokenStore]:
    """The tokenised corpus: found in the cache if it was built before, else built.

    Several processes may call this at once; one builds, the others wait for it.

    Args:
        corpus: The documents.
        tokenizer: Cuts them into tokens.
        config: Splits and resources.
        cleaning: What is done to the text first.
        cache_dir: Where stores are kept; None for `default_cache_dir()`.

    Returns:
        Stores by the name of their split: `train`, `val` and `test`. A split that got no documents is an empty store.

    Raises:
        DataError: If the corpus has no documents, a file of it is broken or changes meanwhile, or the store in the cache is broken.
        ConfigError: If another process holds the store and cannot be waited for.
    """
    identity = _identify(corpus, tokenizer, config, cleaning)
    folder = (cache_dir or default_cache_dir()) / "stores" / identity.fingerprint
    shards_folder = _shard_folder(folder)
    if shards_folder.exists() or not folder.is_dir():
        with locked(folder):
            if folder.is_dir():  # another process built it while this one waited, or was killed right after
                _remove(shards_folder)
            else:
                _Build(corpus, ShardWriter(shards_folder, tokenizer, cleaning), config, identity, folder).run()
    return {name: TokenStore.open(folder / name, config.verify) for name in SPLITS}


class _Build:
    """One build, under a lock."""

    def __init__(self, corpus: Corpus, writer: ShardWriter, config: StoreConfig, identity: StoreIdentity, folder: Path) -> None:
        self.corpus, self.writer, self.config, self.identity, self.folder = corpus, writer, config, identity, folder
        self.shards_folder = writer.folder
        self.num_shards = self.num_reused = 0

    def run(self) -> None:
        """Builds the folder."""
        started = time.monotonic()
        self.shards_folder.mkdir(parents=True, exist_ok=True)
        try:
            counts = self._write_shards()
            files = [shard_file(self.shards_folder, number) for number in range(self.num_shards)]
            if not counts.num_kept:
                why = counts.summary() if counts.num_read else "it holds no documents"
                remedy = "check the files, and what cleaning drops"
                raise DataError("there is nothing to tokenise", where=place_of(self.identity.corpus), why=why, remedy=remedy)
            self._check_unchanged()
            splits = assign_documents(files, self.config, self.writer.cleaning.duplicates == "drop")
            counts.num_duplicates = int((splits == DROPPED).sum())
            counts.num_kept -= counts.num_duplicates
            self._merge(files, splits, counts)
        except InterruptedBuildError:
            raise
        except LabError:
            _remove(self.shards_folder)  # text or settings have to change, and with them the fingerprint
            raise
        _remove(self.shards_folder)
        self._report(counts, time.monotonic() - started)

    def _write_shards(self) -> CleaningCounts:
        counts = CleaningCounts()
        cleaning, at_most = self.writer.cleaning, self.corpus.characters_at_most()
        shards = cut_shards(self.corpus.documents_for(cleaning), self.config.shard_characters)
        with ExitStack() as stack:
            bar = _progress(stack)
            for part in self._results(shards, stack):
                self.num_shards += 1
                counts += part
                counts.check(cleaning, at_most)
                if bar is not None:
                    bar.update(part.num_bytes)
        counts.check(cleaning)
        if self.num_reused:
            log.info("took over %s of %s parts from an interrupted build", self.num_reused, self.num_shards)
        return counts

    def _check_unchanged(self) -> None:
        forget_file_hashes()
        if self.corpus.fingerprint() != self.identity.corpus_fingerprint:
            raise DataError(
                "the corpus has changed while it was tokenised",
                where=place_of(self.identity.corpus),
                why="the store would hold neither the old text nor the new one",
                remedy="start again when nothing writes to it any more",
            )

    def _merge(self, files: list[Path], splits: np.ndarray, counts: CleaningCounts) -> None:
        merged = self.shards_folder / "merged"
        try:
            _remove(merged)
            merge_shards(files, splits, merged, self.identity, counts)
            merged.replace(self.folder)
        except InterruptedBuildError:
            raise
        except (OSError, DataError) as error:
            why = error.why or error.what if isinstance(error, DataError) else str(error)
            remedy = f"free the disk, or set {CACHE_VARIABLE} to another folder; what was done is kept"
            raise InterruptedBuildError("the store cannot be written", where=str(merged), why=why, remedy=remedy) from error

    def _results(self, shards: Iterator[RawShard], stack: ExitStack) -> Iterator[CleaningCounts]:
        first = list(itertools.islice(shards, 2))
        num_processes = self.config.num_processes or num_cores()
        shards = itertools.chain(first, shards)
        if num_processes == 1 or len(first) < 2:  # a small corpus is done before a process is up
            encoder = Encoder(self.writer.tokenizer)
            yield from (self._finished(raw) or self.writer.write(raw, encoder) for raw in shards)
            return
        pool = stack.enter_context(WorkerPool(self.writer, num_processes))
        pending: deque[CleaningCounts | Future[CleaningCounts]] = deque()
        for raw in shards:
            pending.append(self._finished(raw) or pool.submit(raw))
            if len(pending) > num_processes:  # one more than there are processes, so that none waits
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())

    def _finished(self, raw: RawShard) -> CleaningCounts | None:
        counts = self.writer.finished(raw)
        self.num_reused += counts is not None
        return counts

    def _report(self, counts: CleaningCounts, seconds: float) -> None:
        rate = counts.num_bytes / 1e6 / max(seconds, 1e-9)
        log.info("tokenised %.1f MB in %.1f s (%.1f MB/s); %s", counts.num_bytes / 1e6, seconds, rate, counts.summary())
        parts: Counter[str] = Counter()
        for name in SPLITS:
            header = TokenStore.open(self.folder / name).header
            parts.update(header.parts)
            log.info(
                "%s: %s documents, %s tokens, %s sentences",
                name,
                *(f"{n:,}" for n in (header.num_documents, header.num_tokens, header.num_sentences)),
            )
        for name, num_characters in parts.items():
            log.info("part %s: %.2f %% of the characters", name, 100 * num_characters / parts.total())
        log.info("the store is %s", self.folder)


def _progress(stack: ExitStack) -> tqdm | None:
    if not sys.stderr.isatty():  # asked here, because a silent tqdm too starts a thread
        return None
    return stack.enter_context(tqdm(desc="tokenising", unit="B", unit_scale=True, leave=False))


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _identify(corpus: Corpus, tokenizer: Tokenizer, config: StoreConfig, cleaning: CleaningConfig) -> StoreIdentity:
    corpus_name, cleaning_name = corpus.fingerprint(), fingerprint(cleaning)
    splits = [config.val_share, config.test_share, config.split_seed]
    return StoreIdentity(
        fingerprint=fingerprint([FORMAT, corpus_name, cleaning_name, tokenizer.fingerprint, splits]),
        corpus_fingerprint=corpus_name,
        cleaning_fingerprint=cleaning_name,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        corpus=corpus.describe(),
    )


def _result(part: CleaningCounts | Future[CleaningCounts]) -> CleaningCounts:
    return part if isinstance(part, CleaningCounts) else part.result()


def _shard_folder(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.building")


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
