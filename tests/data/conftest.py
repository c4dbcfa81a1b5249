"""What the data tests share: two tokenizers, a small corpus, and a cache of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmlab.tokenizer import Tokenizer, TokenizerConfig

ENGLISH = [
    f'Chapter {n}. Mr. Weston came home at {n} o\'clock. "What a day!" said he. It was late; {"very " * (n % 5)}late. Nobody spoke.'
    for n in range(60)
]
CHINESE = [f"第{n}回。玄德曰：“吾弟何在？”飞曰：“在此！”众人皆笑。{'次日升帐，' * (n % 4)}曹操大怒。" for n in range(40)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a test may land in the user's cache."""
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """One token a byte, so that tokens can be counted by hand."""
    return Tokenizer.train([], TokenizerConfig(kind="bytes", num_sentinels=2))


@pytest.fixture(scope="session")
def bpe_tokenizer() -> Tokenizer:
    """Merges of both languages."""
    return Tokenizer.train([*ENGLISH, *CHINESE], TokenizerConfig(kind="bpe", vocab_size=500, num_sentinels=2))


@pytest.fixture(scope="session")
def wordpiece_tokenizer() -> Tokenizer:
    """Forgets spaces."""
    return Tokenizer.train([*ENGLISH, *CHINESE], TokenizerConfig(kind="wordpiece", vocab_size=500, num_sentinels=2))
