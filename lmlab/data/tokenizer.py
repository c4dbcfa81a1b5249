"""A tokenizer and the corpus it is trained on, brought together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from lmlab.cache import default_cache_dir
from lmlab.config import fingerprint
from lmlab.data.cleaning import CleaningConfig, CleaningCounts, clean
from lmlab.data.corpus import Corpus, open_corpus
from lmlab.data.corpus.base import place_of
from lmlab.errors import DataError
from lmlab.tokenizer import Tokenizer, TokenizerConfig, resolve_tokenizer


def tokenizer_for(
    corpus: str | PathLike[str] | Mapping[str, Any] | Corpus,
    config: TokenizerConfig = TokenizerConfig(),
    cleaning: CleaningConfig = CleaningConfig(),
    cache_dir: str | None = None,
) -> Tokenizer:
    """Loads a tokenizer, or trains it on a corpus, once.

    Args:
        corpus: As `CorpusModule` takes it: a built-in name, a path or glob, `hf:NAME`, or a class path.
        config: Which tokenizer.
        cleaning: What is done to the text before; give the data module the same.
        cache_dir: Where trained ones are kept; None for the default.

    Raises:
        DataError: If the corpus is empty or missing.
    """
    source = open_corpus(corpus)
    folder = Path(cache_dir) if cache_dir else default_cache_dir()
    return resolve_tokenizer(config, lambda: training_texts(source, cleaning), fingerprint([source.fingerprint(), cleaning]), folder)


def training_texts(corpus: Corpus, cleaning: CleaningConfig = CleaningConfig()) -> Iterator[str]:
    """The documents as a tokenizer is trained on them, cleaned.

    Args:
        corpus: The documents.
        cleaning: How they are cleaned.

    Raises:
        DataError: At the end, if nothing is left of them.
    """
    counts, empty = CleaningCounts(), True
    for document in clean(corpus.documents_for(cleaning), cleaning, counts):
        empty = False
        yield document.text
    if empty:
        where, remedy = place_of(corpus.describe()), "check the path, the field and the separator"
        raise DataError("the corpus is empty", where=where, why=counts.summary(), remedy=remedy)
