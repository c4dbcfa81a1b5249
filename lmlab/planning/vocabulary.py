"""A tokenizer that only says how large it is: planning must not wait for one to be trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.cache import default_cache_dir
from lmlab.config import fingerprint
from lmlab.data.cleaning import CleaningConfig
from lmlab.data.corpus import HuggingFaceCorpus, open_corpus
from lmlab.errors import DataError, LabError
from lmlab.tokenizer import Tokenizer, TokenizerConfig, resolve_tokenizer
from lmlab.tokenizer.resolve import cached_file


def planned_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """A tokenizer of bytes that says it had as many entries as one that is going to be trained.

    Its vocabulary and special ids are right, and what it makes of a text is not: nothing may be encoded with it. Copies forget the size.

    Args:
        config: Which tokenizer is planned; its `vocab_size` is an upper limit where the text is too short to fill it.
    """
    made = Tokenizer.train([], TokenizerConfig(kind="bytes", num_sentinels=config.num_sentinels))
    size = made.vocab_size if config.kind == "bytes" else max(config.vocab_size, made.vocab_size)
    # a value that cannot be changed keeps what it has derived from itself here; the parser takes no subclass in its place
    made.__dict__.update(vocab_size=size, _table=made._table._replace(num_bytes=np.ones(size, np.int64)))
    return made


def known_tokenizer(
    corpus: str | PathLike[str] | Mapping[str, Any], config: TokenizerConfig, cleaning: CleaningConfig, cache_dir: str | None = None
) -> Tokenizer | None:
    """The tokenizer that the settings name, or that an earlier run has trained.

    Args:
        corpus: As `CorpusModule` takes it; it need not be there yet.
        config: Which tokenizer.
        cleaning: What is done to the text before.
        cache_dir: Where trained ones are kept; None for the default.

    Returns:
        None if it would have to be trained first.

    Raises:
        DataError: If the settings name a file that is no tokenizer.
    """
    if config.path is not None:
        return Tokenizer.load(config.path, config.num_sentinels)
    folder = Path(cache_dir) if cache_dir else default_cache_dir()
    try:
        source = open_corpus(corpus)
        if isinstance(source, HuggingFaceCorpus):  # nothing is fetched to plan
            return None
        content = fingerprint([source.fingerprint(), cleaning])
        return resolve_tokenizer(config, _nothing, content, folder) if cached_file(config, content, folder).is_file() else None
    except (LabError, OSError):  # a text that is not there yet
        return None


def _nothing() -> Iterable[str]:
    raise DataError("a tokenizer is not trained to plan")
