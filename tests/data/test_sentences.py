"""Sentences: where they begin, in English and Chinese, on texts split by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.data.sentences import sentence_starts

MAX_SECONDS_PER_MB = 2.0  # some 0.05 on an idle core; quadratic behaviour would take minutes


@pytest.mark.parametrize(
    "sentences",
    [
        ["One. ", "Two! ", "Three? ", "Four"],
        ['"What?" said he. ', '"No!" ', "She left."],
        ["Mr. and Mrs. Weston met Dr. No at 3.5 p.m. on St. James Street. ", "It rained."],
        ["J. R. Smith, Jr. stood up. ", "He spoke."],
        ["See no. 5 and fig. 3 (p. 7). ", "Then stop."],
        ["Two towns, i.e. Paris and (e.g.) London, fell. ", "I.e. Rome stood. ", "E.g. Bath."],
        ["Two towns, i. e. Paris and (e. g. Bath), fell at 5 p. m. on Monday. ", "Take plan b. ", "Go."],
        ["It was I. ", "He said no. ", "And so on etc. ", "Next."],
        ["He paused... and went on... ", "Then nothing."],
        ["A heading without a full stop\n\n", "A paragraph\nwhose lines are wrapped. ", "Its end."],
        ["(It was so.) ", "“Really?” ", "‘Yes.’ ", "_So_ it was."],
        ["滚滚长江东逝水，浪花淘尽英雄。", "是非成败转头空。\n", "青山依旧在？", "几度夕阳红！！"],
        ["玄德曰：“吾弟何在？”", "飞曰：“在此！”", "众人皆笑……后人有诗。", "“哀哉……”", "曹操大怒。"],
        ["他说OK! ", "然后走了.", "再见。"],
    ],
)
def test_by_hand(sentences: list[str]) -> None:
    expected = np.cumsum([0] + [len(sentence) for sentence in sentences[:-1]])
    assert sentence_starts("".join(sentences)).tolist() == expected.tolist()


@given(text=st.text("aB .!?\n\"'“”。！…MrI3", max_size=80))
def test_starts_are_places_in_the_text(text: str) -> None:
    starts = sentence_starts(text)
    assert starts.dtype == np.int64
    assert starts.tolist() == sorted(set(starts.tolist()))
    assert (starts[:1] == 0).all() and (len(starts) > 0) == (len(text) > 0)
    assert (starts < max(1, len(text))).all()


@pytest.mark.parametrize("text", ["." * 10**6, " " * 10**6, "\n" * 10**6, "a. " * 333_333, '."' * 500_000, "\n " * 500_000, "a" * 10**6])
def test_no_text_takes_long(text: str) -> None:
    started = time.process_time()
    sentence_starts(text)
    assert time.process_time() - started < MAX_SECONDS_PER_MB
