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

    def texts() -> Iterator[str]:
        counts, empty = CleaningCounts(), True
        for document in clean(source.documents(), cleaning, counts):
            empty = False
            yield document.text
        if empty:
            raise DataError(
                "the corpus is empty", where=str(corpus), why=counts.summary(), remedy="check the path, the field and the separator"
            )

    folder = Path(cache_dir) if cache_dir else default_cache_dir()
    return resolve_tokenizer(config, texts, fingerprint([source.fingerprint(), cleaning]), folder)
