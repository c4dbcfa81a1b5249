"""Where sentences begin, in English and Chinese text, by rules.

The rules are meant for views of sentences, where a missed or an extra boundary costs little. They need no model, and read a
megabyte in some ten milliseconds.
"""

from __future__ import annotations

import re

import numpy as np

_CLOSERS = "\"'”’»)\\]）】」』》〉"

_BOUNDARY = re.compile(
    rf"(?P<wide>[。！？｡]+[…—]*[{_CLOSERS}]*\s*)"  # Chinese: no space needed
    rf"|(?P<dots>…+[{_CLOSERS}]+\s*)"  # an ellipsis ends a sentence only where it ends what is said
    rf"|(?P<latin>[.!?…]+[{_CLOSERS}_*]*(?:\s+|(?=[\u3400-\u9fff“「『])))"
    r"|(?P<paragraph>\n[^\S\n]*\n\s*)"
)
_OPENERS = "\"'“‘«([（【「『《〈_*-–— "
_LAST_WORD = re.compile(r"([^\W\d_]+(?:\.[^\W\d_]+)*)$")
_ABBREVIATIONS = frozenset(
    "mr mrs ms messrs mme dr st jr sr prof rev hon capt col gen lt sgt maj esq etc vs viz cf al fig figs eq eqs sec vol no nos pp ed eds "
    "inc ltd co corp dept univ jan feb mar apr jun jul aug sep sept oct nov dec e.g i.e a.m p.m u.s u.k approx ca".split()
)
_NUMBERED = frozenset({"no", "nos", "pp", "fig", "figs", "eq", "eqs", "sec", "vol", "al", "etc", "co", "inc", "ltd", "jr", "sr"})


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
    starts = [0]
    for match in _BOUNDARY.finditer(text):
        end = match.end()
        if end < len(text) and (match.lastgroup != "latin" or _ends_latin(text, match.start(), end)):
            starts.append(end)
    return np.array(starts, np.int64)


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
    is_initial = len(letters) == 1 and letters.isupper() and letters != "I"
    if letters.lower() not in _ABBREVIATIONS:
        return not is_initial
    # "no. 5" and "etc. 5" go on, "Smith & Co. The" does not
    return letters.lower() in _NUMBERED and not text[following : following + 1].isdigit()
