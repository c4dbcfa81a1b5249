"""Beginnings of words: English by spaces, Chinese by pieces or by dictionary."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lmlab.errors import ConfigError
from lmlab.tokenizer import Tokenizer, words

from .conftest import KINDS


def split(tokenizer: Tokenizer, text: str, chinese: str = "pieces") -> list[str]:
    ids = tokenizer.encode(text)
    starts = tokenizer.word_starts(ids, chinese)  # type: ignore[arg-type]
    assert starts.dtype == bool
    assert starts[0]
    return [tokenizer.decode(part.tolist()).strip() for part in np.split(np.array(ids), np.flatnonzero(starts)[1:])]


@pytest.mark.parametrize("kind", ["bpe", "unigram", "characters", "bytes"])
def test_english_words(kind: str, trained: Callable[[str], Tokenizer]) -> None:
    text = "Emma Woodhouse, handsome and unbelievablyclever, didn't\nsee 1st-rate naïveté."
    expected = [
        "Emma",
        "Woodhouse",
        ",",
        "handsome",
        "and",
        "unbelievablyclever",
        ",",
        "didn't",
        "",
        "see",
        "1st",
        "-",
        "rate",
        "naïveté",
        ".",
    ]
    assert split(trained(kind), text) == expected


def test_wordpiece_words_are_those_of_bert(trained: Callable[[str], Tokenizer]) -> None:
    tokenizer = trained("wordpiece")
    ids = tokenizer.encode("Emma's unbelievable 玄德")
    assert tokenizer.word_starts(ids).tolist() == [not tokenizer.token(i).startswith("##") for i in ids]
    assert tokenizer.word_starts(ids).tolist().count(True) == 6


def test_a_chinese_piece_is_a_word(trained: Callable[[str], Tokenizer]) -> None:
    for kind in ("bpe", "unigram"):
        tokenizer = trained(kind)
        ids = tokenizer.encode("玄德曰")
        assert tokenizer.word_starts(ids).all(), kind
        assert len(ids) < 3, kind
    assert split(trained("characters"), "玄德曰：「a b」") == ["玄", "德", "曰", "：", "「", "a", "b", "」"]


@pytest.mark.parametrize("kind", ["bpe", "bytes", "characters", "unigram"])
def test_the_inside_of_a_character_never_begins_a_word(kind: str, trained: Callable[[str], Tokenizer]) -> None:
    tokenizer = trained(kind)
    ids = tokenizer.encode("x龘靐y é龘")
    text = [tokenizer.token(i) for i in ids]
    assert len(ids) > 9, "these characters must be in several pieces for the test to say something"
    encoded = "x龘靐y é龘".encode()
    at = np.cumsum([0, *tokenizer.token_bytes()[ids]])[:-1]
    inside = np.array([0x80 <= encoded[position] < 0xC0 for position in at])
    starts = tokenizer.word_starts(ids)
    assert not starts[inside].any()
    assert starts[~inside].sum() == 6, text  # x 龘 靐 y, " é", 龘
    assert not tokenizer.word_starts(ids[2:])[0] or not inside[2]


def test_special_tokens_stand_alone(trained: Callable[[str], Tokenizer]) -> None:
    for kind in KINDS:
        tokenizer = trained(kind)
        word = tokenizer.encode("cat")
        starts = tokenizer.word_starts([tokenizer.cls_id, *word, tokenizer.sep_id, tokenizer.sep_id, *word])
        n = len(word)
        assert starts[[0, 1, 1 + n, 2 + n, 3 + n]].all()
        assert starts.sum() == 5
    assert trained("bpe").word_starts([]).shape == (0,)


def test_dictionary_words(trained: Callable[[str], Tokenizer]) -> None:
    rjieba = pytest.importorskip("rjieba")
    text = "丞相大笑 and 是非成败转头空，龘龘何故大笑？"
    for kind in ("characters", "bytes", "wordpiece"):
        tokenizer = trained(kind)
        ids = tokenizer.encode(text)
        starts = tokenizer.word_starts(ids, "words")
        if kind == "wordpiece":
            assert starts.sum() < tokenizer.word_starts(ids).sum()
            continue
        expected = [
            word
            for part in ("丞相大笑", " and", " ", "是非成败转头空", "，", "龘龘何故大笑", "？")
            for word in (rjieba.cut(part) if part[0] != " " else [part])
        ]
        assert split(tokenizer, text, "words") == [word.strip() for word in expected]
    for kind in ("bpe", "unigram"):  # a piece may hold more than a word; it is then not cut
        tokenizer = trained(kind)
        ids = tokenizer.encode(text)
        assert not (tokenizer.word_starts(ids, "words") & ~tokenizer.word_starts(ids)).any()


def test_dictionary_words_across_a_special_token(trained: Callable[[str], Tokenizer]) -> None:
    pytest.importorskip("rjieba")
    tokenizer = trained("characters")
    left, right = tokenizer.encode("是非"), tokenizer.encode("成败")
    assert tokenizer.word_starts([*left, *right], "words").tolist() == [True, False, False, False]
    assert tokenizer.word_starts([*left, tokenizer.mask_id, *right], "words")[[0, 2, 3]].all()
    assert tokenizer.word_starts(tokenizer.encode("是")[1:] + right, "words")[0]


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, trained: Callable[[str], Tokenizer]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rjieba", None)
    words._segmenter.cache_clear()  # it remembers the package
    with pytest.raises(ConfigError, match=r"lmlab\[zh\]"):
        trained("characters").word_starts(trained("characters").encode("丞相大笑"), "words")
    words._segmenter.cache_clear()
