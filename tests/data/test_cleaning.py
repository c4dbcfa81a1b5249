"""Cleaning: what becomes of each kind of bad text, and what is counted."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.data.cleaning import CleaningConfig, CleaningCounts, clean, text_hash
from lmlab.data.corpus import Document
from lmlab.errors import ConfigError, DataError


def cleaned(*texts: str, **settings: Any) -> tuple[list[str], CleaningCounts]:
    counts = CleaningCounts()
    documents = [Document(text, f"x.txt:{line}") for line, text in enumerate(texts, start=1)]
    return [document.text for document in clean(documents, CleaningConfig(**settings), counts)], counts


def test_control_characters() -> None:
    text = "a\0b\x0cc\td\ne\x85f\x7f\r\ng\rh"
    assert cleaned(text)[0] == ["ab c\td\ne f\ng\nh"]
    assert cleaned(text, control="space")[0] == ["a b c\td\ne f \ng\nh"]
    kept, counts = cleaned(text, control="keep")
    assert kept == [text]
    assert counts.num_control == 6  # two of them are the carriage returns
    assert cleaned(text)[1].num_control == 4


def test_bytes_that_are_no_utf8() -> None:
    raw = b"ok \xff\xfe caf\xe9, \xe4\xb8 \xf0\x9f\x98\x80"
    text = raw.decode("utf-8", "surrogateescape")
    kept, counts = cleaned("fine", text)
    assert kept == ["fine", raw.decode("utf-8", "replace")]  # Python's own decoder
    assert counts.num_invalid == 5
    assert counts.examples == ("x.txt:2, character 4",)
    kept, counts = cleaned("fine", text, invalid="skip")
    assert (kept, counts.num_skipped, counts.num_kept) == (["fine"], 1, 1)
    with pytest.raises(DataError, match=r"x.txt:2, character 4"):
        cleaned("fine", text, invalid="fail")


def test_lone_surrogates_become_one_replacement_each() -> None:
    assert cleaned("a \ud800 b \udfff")[0] == ["a \ufffd b \ufffd"]


def test_too_much_invalid_text_is_refused() -> None:
    wrong = "茶馆里很热闹".encode("gb18030").decode("utf-8", "surrogateescape") * 10
    _, counts = cleaned("good text " * 20, wrong)
    with pytest.raises(DataError, match=r"not valid UTF-8[\s\S]*x.txt:2[\s\S]*GB18030"):
        counts.check(CleaningConfig())
    counts.check(CleaningConfig(max_invalid_share=1.0))
    cleaned("a \udcff")[1].check(CleaningConfig(max_invalid_share=0.0))  # one bad byte is no other encoding


def test_empty_and_short_documents() -> None:
    kept, counts = cleaned("", " \n\u3000", "a", "abc", "\0", min_characters=2)
    assert kept == ["abc"]
    assert (counts.num_read, counts.num_kept, counts.num_empty, counts.num_short) == (5, 1, 3, 1)


@pytest.mark.parametrize("form", ["nfc", "nfkc", "none"])
@given(text=st.text(min_size=1))
def test_normal_forms(form: Any, text: str) -> None:
    kept, _ = cleaned(text, normalization=form, control="keep")
    expected = text if form == "none" else unicodedata.normalize(form.upper(), text)
    assert kept == ([expected] if expected.strip() else [])


@given(text=st.text(st.characters()))  # surrogates too
def test_what_is_left_can_be_encoded_and_is_clean_already(text: str) -> None:
    kept, _ = cleaned(text)
    for first in kept:
        first.encode()
        again, counts = cleaned(first)
        assert again == [first]
        assert counts.num_control == counts.num_invalid == 0


def test_counts_add_up_and_say_so() -> None:
    first, second = CleaningCounts(num_read=3, num_empty=1, examples=("a", "b", "c")), CleaningCounts(num_read=1, examples=("d", "e", "f"))
    total = first + second
    assert (total.num_read, total.num_empty, total.examples) == (4, 1, ("a", "b", "c", "d", "e"))
    assert total.summary() == "kept 0 of 4 documents; dropped: 1 empty"


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="max_invalid_share"):
        CleaningConfig(max_invalid_share=2)
    with pytest.raises(ConfigError, match="min_characters"):
        CleaningConfig(min_characters=0)
    for wrong in ({"normalization": "nfd"}, {"control": "drop"}, {"invalid": "ignore"}, {"duplicates": "yes"}):
        with pytest.raises(ConfigError, match=rf"CleaningConfig.{next(iter(wrong))}[\s\S]*(did you mean|choose one of)"):
            CleaningConfig(**wrong)  # type: ignore[arg-type]


@given(text=st.text("ab \n\u3000三"), other=st.text("ab \n\u3000三"), size=st.integers(1, 5))
def test_hashes_are_equal_where_the_words_are(text: str, other: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmlab.data.cleaning._HASHED_AT_ONCE", size)
        hashes = text_hash(text), text_hash(other)
    assert hashes == (text_hash(" ".join(text.split())), text_hash(" ".join(other.split())))
    assert (hashes[0] == hashes[1]) == (text.split() == other.split())


def test_a_corpus_is_refused_early_only_where_the_rest_could_not_save_it() -> None:
    config, counts = CleaningConfig(max_invalid_share=0.01), CleaningCounts(num_invalid=30, num_characters=100)
    for at_most, is_refused in ((None, True), (100, True), (2999, True), (3000, False), (float("inf"), False)):
        if is_refused:
            with pytest.raises(DataError, match="not valid UTF-8"):
                counts.check(config, at_most)
        else:
            counts.check(config, at_most)
    with pytest.raises(DataError, match="not valid UTF-8"):
        counts.check(CleaningConfig(max_invalid_share=0), float("inf"))
