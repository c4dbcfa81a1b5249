"""Where sentences begin, in English and Chinese text, by rules.

The rules are meant for views of sentences, where a missed or an extra boundary costs little. They need no model, and read a
megabyte in some ten milliseconds.
"""

from __future__ import annotations

import re

import numpy as np

_WIDE = frozenset("。！？｡")  # end a sentence without a space after them
_END = re.compile(r"[.!?…。！？｡][.!?…。！？｡—]*([\"'”’»)\]）】」』》〉_*]*)(\s*)")
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_STARTS_CHINESE = re.compile("[\u3400-\u9fff“「『]")
_OPENERS = "\"'“‘«([（【「『《〈_*-–— "
_LAST_WORD = re.compile(r"([^\W\d_]+(?:\.[^\W\d_]+)*)$")
_WRITTEN_WITH_A_STOP = (
    "mr mrs ms messrs mme dr st jr sr prof rev hon capt col gen lt sgt maj esq etc vs viz cf al fig figs eq eqs sec vol no nos p pp ch "
    "chap art ed eds inc ltd co corp dept univ jan feb mar apr jun jul aug sep sept oct nov dec e.g i.e a.m p.m u.s u.k approx ca"
)
_ABBREVIATIONS = frozenset(_WRITTEN_WITH_A_STOP.split())
_TWO_LETTERS = re.compile(r"(?<![^\W_])([^\W\d_])\.\s([^\W\d_])$")  # "i. e.", as older books write it
_NUMBERED = frozenset(
    {"no", "nos", "p", "pp", "ch", "chap", "art", "fig", "figs", "eq", "eqs", "sec", "vol", "al", "etc", "co", "inc", "ltd", "jr", "sr"}
)


def sentence_starts(text: str) -> np.ndarray:
    """Character offsets at which sentences begin.

    A sentence ends after `。！？` or after `.!?` followed by a space, closing quotes and brackets included, and before an empty line.
    It does not end after an abbreviation or an initial, nor before a word in lower case (`"What?" said he.`). Spaces between two
    sentences belong to the first.

    Args:
        text: One document.

    Returns:
        (number of sentences,) int64, ascending, the first 0; empty for an empty text.
    """
    if not text:
        return np.zeros(0, np.int64)
    starts = {match.end() for match in _END.finditer(text) if _is_boundary(text, match)}
    starts.update(match.end() for match in _PARAGRAPH.finditer(text))
    starts.discard(len(text))
    return np.array(sorted(starts | {0}), np.int64)


def _is_boundary(text: str, match: re.Match[str]) -> bool:
    begin, end = match.start(), match.end()
    marks = text[begin : match.start(1)]
    if not _WIDE.isdisjoint(marks):
        return True
    if not match.group(2):  # no space
        if "…" in marks:  # an ellipsis within Chinese text ends a sentence only where it ends what is said
            return bool(match.group(1))
        if not _STARTS_CHINESE.match(text, end):
            return False
    return _ends_latin(text, begin, end)


def _ends_latin(text: str, start: int, end: int) -> bool:
    following = end
    while following < len(text) and text[following] in _OPENERS:
        following += 1
    if following < len(text) and text[following].islower():
        return False
    if text[start] != "." or text[start : start + 2] == "..":
        return True
    word = _LAST_WORD.search(text, max(0, start - 20), start)
    if word is None:
        return True
    letters = word.group(1)
    spaced = _TWO_LETTERS.search(text, max(0, start - 5), start)
    if spaced is not None and ".".join(spaced.groups()).lower() in _ABBREVIATIONS:
        return False
    is_initial = len(letters) == 1 and letters.isupper() and letters != "I"
    if letters.lower() not in _ABBREVIATIONS:
        return not is_initial
    # "no. 5" and "etc. 5" go on, "Smith & Co. The" does not
    return letters.lower() in _NUMBERED and not text[following : following + 1].isdigit()
