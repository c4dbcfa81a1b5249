"""Long text in pieces: what keeps memory flat on a 50 MB line, without changing a single token.

Where a cut is exact. A byte-level pre-tokenizer walks forward with a regular expression none of whose alternatives runs from
a non-space into a space (GPT-2: contractions, ` ?letters`, ` ?numbers`, ` ?others`, spaces), and the one look-ahead it has
follows a space. So a token border lies between every non-space and the space after it, whatever stands further on, and no
merge crosses a border. WordPiece splits at spaces, and SentencePiece's `▁` begins a new piece, so both have that border too.
Unicode normalisation cannot cross it, because nothing composes with a space. Between a letter and a comma the same holds for
a byte-level pre-tokenizer, and between a letter and a line end. Between a comma and a line end it holds for those that are known
to part them (`parts_lines`), but not for those of Llama 3 and GPT-4, which join line ends to the punctuation before them; with an
unknown one no cut is made there. Only text with neither, such as two megabytes of one letter, is cut where it may change a token:
once in `PIECE_CHARACTERS`. (A loaded tokenizer that puts a `▁` before every text, as Llama 2's, puts one before every piece.)
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmlab.errors import DataError

PIECE_CHARACTERS = 1 << 18  # at most 1 MB of UTF-8

_BORDERS = (
    re.compile(r"(?<=\S) "),
    re.compile(r"(?<=[^\W_])[\t\r\n]"),
    re.compile(r"(?<=[^\W_])[,.;:!?()，。、；：！？…（）「」『』《》“”—]"),
)
_LINE_END = re.compile(r"(?<=\S)[\t\r\n]")  # after whatever stands there
_FIRST_WINDOW = 1 << 12
_LONGEST_CLUSTER = 64  # marks on one letter; beyond it the text is not language
_JAMO = range(0x1160, 0x1200)  # vowels and finals that compose with what stands before


def sanitise(text: object) -> str:
    """Text that can be encoded: joins surrogate pairs, and puts U+FFFD where half of one is missing.

    Args:
        text: What a corpus gave.

    Raises:
        DataError: If it is not a string.
    """
    if not isinstance(text, str):
        raise DataError(f"{type(text).__name__} is not text: {text!r:.60}", why="a tokenizer takes strings", remedy="check the text column")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def parts_lines(content: Mapping[str, Any]) -> bool:
    """Whether a tokenizer is known to have a token border between every non-space and a line end or tab after it.

    Args:
        content: Its tokenizer.json.
    """
    first = content.get("pre_tokenizer") or {}
    while first.get("type") == "Sequence":  # those after the first one only cut its pieces further
        first = next(iter(first["pretokenizers"]), {})
    kind = first.get("type")
    if kind == "ByteLevel":
        return bool(first.get("use_regex", True))
    return kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit") or (kind == "Split" and first.get("pattern") == {"String": "\n"})


def cut(text: str, limit: int = PIECE_CHARACTERS, at_line_ends: bool = True) -> Iterator[str]:
    """Cuts a text into pieces of at most `limit` characters that join to it again.

    Args:
        text: Any text.
        limit: Longest piece, in characters.
        at_line_ends: Whether line ends may be cut off from anything, from `parts_lines`; else only from letters and digits.

    Yields:
        The pieces in order; none for an empty text.
    """
    start = 0
    borders = (_BORDERS[0], _LINE_END, *_BORDERS[1:]) if at_line_ends else _BORDERS
    while len(text) - start > limit:
        end = _border(text, start, start + limit, borders)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _border(text: str, start: int, end: int, borders: Sequence[re.Pattern[str]]) -> int:
    for border in borders:
        window = _FIRST_WINDOW
        while True:
            low = max(start + 1, end + 1 - window)  # the character that is cut before may stand at `end`
            last = -1
            for match in border.finditer(text, low, end + 1):
                last = match.start()
            if last > start:
                return last
            if low == start + 1:
                break
            window *= 8
    for position in range(end, max(start, end - _LONGEST_CLUSTER), -1):
        if unicodedata.category(text[position])[0] != "M" and ord(text[position]) not in _JAMO:
            return position
    return end
