"""Small slices of the embedded texts, and one tokenizer of each kind trained on them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable

import pytest

from lmlab.data.embedded import embedded_path
from lmlab.tokenizer import Tokenizer, TokenizerConfig

KINDS = ("bpe", "wordpiece", "unigram", "characters", "bytes")


def slice_of(name: str, num_documents: int, num_characters: int) -> list[str]:
    """The beginnings of the first documents of an embedded text."""
    with gzip.open(embedded_path(name), "rt", encoding="utf-8") as file:
        return [json.loads(next(file))["text"][:num_characters] for _ in range(num_documents)]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """English and Chinese, some 60,000 characters."""
    return slice_of("austen", 6, 6000) + slice_of("sanguo", 8, 3000)


@pytest.fixture(scope="session")
def trained(texts: list[str]) -> Callable[[str], Tokenizer]:
    """A tokenizer of a kind, trained once a session."""
    made: dict[str, Tokenizer] = {}

    def get(kind: str) -> Tokenizer:
        if kind not in made:
            made[kind] = Tokenizer.train(texts, TokenizerConfig(kind=kind, vocab_size=3000, num_sentinels=10))  # type: ignore[arg-type]
        return made[kind]

    return get
