"""Training: what is in the vocabulary, the same one every time, from streams of any shape."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from lmlab.errors import ConfigError, DataError
from lmlab.tokenizer import Tokenizer, TokenizerConfig

from .conftest import KINDS

TRAIN_TWICE = """
import gzip, json, sys
from lmlab.data.embedded import embedded_path
from lmlab.tokenizer import Tokenizer, TokenizerConfig
texts = [json.loads(line)["text"][:3000] for name in ("austen", "sanguo") for line in list(gzip.open(embedded_path(name), "rt"))[:3]]
for kind in ("bpe", "wordpiece", "unigram", "characters"):
    print(Tokenizer.train(texts, TokenizerConfig(kind=kind, vocab_size=2000)).fingerprint)
"""


def fingerprints(num_threads: int) -> str:
    environment = {
        **os.environ,
        "RAYON_NUM_THREADS": str(num_threads),
        "TOKENIZERS_PARALLELISM": "true",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return subprocess.run([sys.executable, "-c", TRAIN_TWICE], env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("kind", KINDS)
def test_size_and_order_of_the_vocabulary(kind: str, trained: Callable[[str], Tokenizer]) -> None:
    tokenizer = trained(kind)
    names = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "[CLS]", "[SEP]", "[MASK]", *(f"<extra_id_{i}>" for i in range(10))]
    assert [tokenizer.token(i) for i in range(17)] == names
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (4, 5, 6)
    assert tokenizer.sentinel_ids == tuple(range(7, 17))
    assert tokenizer.special_ids == frozenset(range(17))
    assert tokenizer.vocab_size == (273 if kind == "bytes" else tokenizer.vocab_size)
    if kind in ("bpe", "wordpiece", "unigram"):
        assert tokenizer.vocab_size == 3000
    spellings = [tokenizer.token(i) for i in range(tokenizer.vocab_size)]
    assert len(set(spellings)) == tokenizer.vocab_size


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_text_gives_the_same_json(kind: str, texts: list[str], trained: Callable[[str], Tokenizer]) -> None:
    again = Tokenizer.train(iter(texts), TokenizerConfig(kind=kind, vocab_size=3000, num_sentinels=10))  # type: ignore[arg-type]
    assert again.json == trained(kind).json


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_ties_on_little_text_do_not_change_the_vocabulary(kind: str, texts: list[str]) -> None:
    config = TokenizerConfig(kind=kind, vocab_size=600, num_sentinels=0)  # type: ignore[arg-type]
    assert len({Tokenizer.train([texts[0][:1500], texts[-1][:200]], config).json for _ in range(8)}) == 1


def test_threads_do_not_change_the_vocabulary() -> None:
    assert fingerprints(1) == fingerprints(4)


def test_characters_are_the_most_frequent_ones(texts: list[str]) -> None:
    tokenizer = Tokenizer.train(texts, TokenizerConfig(kind="characters", vocab_size=7 + 256 + 50, num_sentinels=0))
    counts = Counter(unicodedata.normalize("NFC", "".join(texts)))
    expected = sorted(sorted(counts, key=lambda c: (-counts[c], c))[:50])
    assert [tokenizer.token(i) for i in range(263, 313)] == expected


def test_frequent_chinese_words_become_pieces(trained: Callable[[str], Tokenizer]) -> None:
    for kind in ("bpe", "unigram"):
        assert len(trained(kind).encode("玄德曰")) < 3, kind


def test_a_stream_is_read_lazily_and_only_as_far_as_allowed(texts: list[str]) -> None:
    read: list[int] = []

    def endless() -> Iterator[str]:
        while True:
            read.append(1)
            yield texts[0]

    for kind in KINDS[:4]:
        read.clear()
        Tokenizer.train(endless(), TokenizerConfig(kind=kind, vocab_size=600, train_characters=20_000))  # type: ignore[arg-type]
        assert len(read) == -(-20_000 // len(texts[0])), kind


@pytest.mark.parametrize("vocab_size", [300, 431, 800, 1500])
def test_wordpiece_fills_its_vocabulary_with_chinese_characters(vocab_size: int) -> None:
    text = "。".join(chr(0x4E00 + i) * (4000 // (i + 1)) for i in range(2000))
    tokenizer = Tokenizer.train([text], TokenizerConfig(kind="wordpiece", vocab_size=vocab_size, num_sentinels=0))
    assert tokenizer.vocab_size == vocab_size
    counts = Counter(text)
    best = sorted(counts, key=lambda c: (-counts[c], c))[: vocab_size - 7]
    assert {tokenizer.token(i) for i in range(7, vocab_size)} == set(best)
    assert np.mean(np.array(tokenizer.encode(text)) == tokenizer.unk_id) == pytest.approx(1 - sum(counts[c] for c in best) / len(text))


def test_wordpiece_takes_rarer_letters_with_their_place_inside_a_word() -> None:
    letters = [chr(0x0561 + i) for i in range(38)] + [chr(0x10D0 + i) for i in range(33)]  # Armenian and Georgian
    text = " ".join("".join(letters[:20]) for _ in range(3)) + " " + " ".join(letters[20:])
    tokenizer = Tokenizer.train([text], TokenizerConfig(kind="wordpiece", vocab_size=135, num_sentinels=0, min_frequency=9))
    spellings = {tokenizer.token(i) for i in range(7, tokenizer.vocab_size)}
    assert tokenizer.vocab_size == 135
    assert sum(f"##{letter}" in spellings for letter in letters) >= 60
    assert all(piece.removeprefix("##") in spellings for piece in spellings)


def test_characters_that_do_not_fit_are_left_out() -> None:
    many = "".join(chr(0x4E00 + i) * (3 if i < 200 else 1) for i in range(2000))
    for kind in ("wordpiece", "unigram"):
        tokenizer = Tokenizer.train([many], TokenizerConfig(kind=kind, vocab_size=800, num_sentinels=0))  # type: ignore[arg-type]
        assert tokenizer.vocab_size <= 800
        assert tokenizer.unk_id not in tokenizer.encode(chr(0x4E00))
    assert tokenizer.decode(tokenizer.encode(chr(0x4E00 + 1999))) == chr(0x4E00 + 1999)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "characters"])
@pytest.mark.parametrize("text", ["a", "。", " a ", "\0\0", "ab\0cd ab\0cd", "[UNK] [UNK]", "<0x41>" * 50])
def test_odd_little_texts(kind: str, text: str) -> None:
    tokenizer = Tokenizer.train([text], TokenizerConfig(kind=kind, vocab_size=500, num_sentinels=0))  # type: ignore[arg-type]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert not tokenizer.special_ids & set(tokenizer.encode(text))


@pytest.mark.parametrize("kind", KINDS)
def test_lower_case(kind: str, texts: list[str]) -> None:
    tokenizer = Tokenizer.train(texts[:2], TokenizerConfig(kind=kind, vocab_size=800, case="lower"))  # type: ignore[arg-type]
    assert tokenizer.encode("Emma WAS") == tokenizer.encode("emma was")


@pytest.mark.parametrize("kind", KINDS[:4])
@pytest.mark.parametrize("nothing", [[], [""], ["  \n", ""]])
def test_no_text_is_an_error(kind: str, nothing: list[str]) -> None:
    with pytest.raises(DataError, match="no text"):
        Tokenizer.train(nothing, TokenizerConfig(kind=kind))  # type: ignore[arg-type]


def test_errors_of_the_corpus_come_through() -> None:
    def broken() -> Iterator[str]:
        yield "some text"
        raise DataError("row 2 is bad")

    for kind in KINDS[:4]:
        with pytest.raises(DataError, match="row 2 is bad"):
            Tokenizer.train(broken, TokenizerConfig(kind=kind))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="not text"):
        Tokenizer.train([3], TokenizerConfig())  # type: ignore[list-item]


def test_a_vocabulary_too_small_names_the_least_size() -> None:
    for kind, least in {"bpe": 363, "wordpiece": 235, "unigram": 491, "characters": 364, "bytes": 108}.items():
        TokenizerConfig(kind=kind, vocab_size=least)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=f"at least {least}"):
            TokenizerConfig(kind=kind, vocab_size=least - 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "sentencepiece"),
        ("normalization", "nfd"),
        ("case", "upper"),
        ("num_sentinels", -1),
        ("min_frequency", 0),
        ("train_characters", 0),
    ],
)
def test_impossible_settings_name_themselves(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"TokenizerConfig.{field}"):
        TokenizerConfig(**{field: value})  # type: ignore[arg-type]
