"""Where words begin, from token ids alone; and how many bytes each token stands for.

What a word is:

- Scripts with spaces: what stands between spaces, its space included, punctuation apart; `don't` is one word (for
  `wordpiece` it is three, as in BERT).
- Chinese, by default (`pieces`): each piece of the vocabulary that begins with a Chinese character. A byte-pair or Unigram
  vocabulary learned from Chinese holds frequent words as pieces, and masking a whole piece is then masking a whole word, with
  no dictionary. Where pieces are single characters (`wordpiece`, `characters`, `bytes`), each character is a word.
- Chinese by dictionary (`words`): the words of jieba's dictionary (package `rjieba`, the `zh` extra: a small binary without
  dependencies), onto which the pieces are laid; this is what Chinese whole-word masking means in the literature.
- A token that begins in the middle of a character never begins a word. A special token always stands alone.

Source: Devlin et al. 2019, whole-word masking in the released BERT code of May 2019; Cui et al. 2021, "Pre-Training with Whole
Word Masking for Chinese BERT", section 3.1.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from lmlab.errors import ConfigError

Spelling = Literal["byte_level", "wordpiece", "metaspace", "plain"]
"""How a vocabulary writes spaces and bytes: `Ġ` and one sign a byte; `##` for inner pieces; `▁` for a space; as they are."""

SPACE, LETTER, MARK, HAN, INNER, NOTHING = range(6)
"""What a token begins or ends with; INNER is the middle of a character, NOTHING a special token."""

_HAN = r"\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana too
_HAN_CHARACTER = re.compile(f"[{_HAN}]")
_HAN_RUN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]{2,}")
_CONTRACTION = re.compile(r"['’]\w")
_FALLBACK_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class PieceTable(NamedTuple):
    """What is known of each id, once for all texts.

    Args:
        text: V byte strings: the UTF-8 (or part of a character) that each id stands for; empty for special tokens.
        num_bytes: (V,) int64, their lengths.
        first: (V,) int8, what each begins with.
        last: (V,) int8, what each ends with; INNER if nothing but the inside of a character.
        lone_space: (V,) bool, True for a single space.
        contraction: (V,) bool, True for pieces such as `'t`.
        apostrophe: (V,) bool, True for an apostrophe alone.
        continues: (V,) bool, True for `##` pieces; None where spaces are written.
    """

    text: list[bytes]
    num_bytes: np.ndarray
    first: np.ndarray
    last: np.ndarray
    lone_space: np.ndarray
    contraction: np.ndarray
    apostrophe: np.ndarray
    continues: np.ndarray | None


def spelling(content: Mapping[str, Any]) -> Spelling:
    """Which conventions a tokenizer.json follows, by its decoder."""
    kinds = {part.get("type"): part for part in _parts(content.get("decoder"))}
    if "ByteLevel" in kinds:
        return "byte_level"
    if content["model"]["type"] == "WordPiece":
        return "wordpiece"
    replaced = kinds.get("Replace", {}).get("pattern", {}).get("String")
    return "metaspace" if "Metaspace" in kinds or replaced == "▁" else "plain"


def _parts(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if not decoder:
        return []
    return [part for inner in decoder["decoders"] for part in _parts(inner)] if decoder.get("type") == "Sequence" else [decoder]


def piece_table(pieces: Sequence[str], added: Mapping[int, str], special_ids: Collection[int], style: Spelling) -> PieceTable:
    """Works out what each id stands for.

    Args:
        pieces: V spellings of the vocabulary.
        added: Id to content of tokens added beside the model, which are spelled as they are.
        special_ids: Ids that stand for no text.
        style: The vocabulary's conventions.
    """
    spelled = [b"" if i in special_ids else _bytes(piece, style) for i, piece in enumerate(pieces)]
    text = [added[i].encode() if i in added and part else part for i, part in enumerate(spelled)]
    readable = [part.decode("utf-8", "ignore") for part in text]
    return PieceTable(
        text=text,
        num_bytes=np.array([len(part) for part in text], dtype=np.int64),
        first=np.array([_first(part) for part in text], dtype=np.int8),
        last=np.array([_last(part) for part in text], dtype=np.int8),
        lone_space=np.array([part == b" " for part in text], dtype=bool),
        contraction=np.array([bool(_CONTRACTION.match(part)) for part in readable], dtype=bool),
        apostrophe=np.array([part in ("'", "’") for part in readable], dtype=bool),
        continues=np.array([piece.startswith("##") for piece in pieces], dtype=bool) if style == "wordpiece" else None,
    )


def word_starts(ids: np.ndarray, table: PieceTable) -> np.ndarray:
    """Which tokens begin a word, Chinese by pieces.

    Args:
        ids: (T,) ids.
        table: Of the tokenizer.

    Returns:
        (T,) bool; the first is True unless it is the inside of a character.
    """
    if not len(ids):
        return np.zeros(0, dtype=bool)
    first, last = table.first[ids], table.last[ids]
    if table.continues is not None:
        starts = ~table.continues[ids]
    else:
        open_end = np.where(last == INNER, 0, np.arange(len(ids)))
        last = last[np.maximum.accumulate(open_end)]  # the inside of a character ends with what that character is
        before = np.concatenate([[NOTHING], last[:-1]])
        after_space = np.concatenate([[False], table.lone_space[ids][:-1]])
        inside = table.apostrophe[ids] & (before == LETTER) & (np.concatenate([first[1:], [NOTHING]]) == LETTER)
        after_apostrophe = np.concatenate([[False], inside[:-1]])
        joined = (first == LETTER) & ((before == LETTER) | after_space | after_apostrophe)
        joined |= inside | table.contraction[ids] & (before == LETTER)
        starts = ~joined & (first != INNER)
    starts[0] = first[0] != INNER
    return starts


def by_dictionary(ids: np.ndarray, table: PieceTable, starts: np.ndarray) -> np.ndarray:
    """Lets words of a dictionary, instead of pieces, decide inside runs of Chinese characters.

    Args:
        ids: (T,) ids.
        table: Of the tokenizer.
        starts: (T,) bool from `word_starts`.

    Returns:
        (T,) bool, a new array.

    Raises:
        ConfigError: If the `zh` extra is not installed.
    """
    parts = [table.text[index] or b"\0" for index in ids.tolist()]  # a special token parts two runs
    begins = np.cumsum([0, *map(len, parts)])[:-1]
    text = b"".join(parts).decode("utf-8", "surrogateescape")  # a broken character stays as long as its bytes
    starts = starts.copy()
    cut = _segmenter()
    position = 0
    read = 0
    for run in _HAN_RUN.finditer(text):
        position += _num_bytes(text[read : run.start()])
        word_begins = np.cumsum([position, *(_num_bytes(word) for word in cut(run[0]))])
        read, position = run.end(), int(word_begins[-1])
        low, high = np.searchsorted(begins, (word_begins[0], position))
        starts[low:high] = np.isin(begins[low:high], word_begins)
    return starts


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


@lru_cache(maxsize=1)
def _segmenter() -> Any:
    try:
        import rjieba  # an optional package
    except ImportError as error:
        raise ConfigError(
            "Chinese words need a dictionary",
            why="the package 'rjieba' is not installed",
            remedy="pip install 'lmlab[zh]', or use 'pieces'",
        ) from error
    return rjieba.cut


@lru_cache(maxsize=1)
def _byte_of_sign() -> dict[str, int]:
    """The alphabet of byte-level vocabularies: printable Latin-1 stands for itself, the other bytes for U+0100 onwards.

    Source: Radford et al. 2019, `bytes_to_unicode` of the released GPT-2 code.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [value for value in range(256) if value not in plain]
    return {chr(value): value for value in plain} | {chr(0x100 + i): value for i, value in enumerate(moved)}


def _bytes(piece: str, style: Spelling) -> bytes:
    if style == "byte_level":
        signs = _byte_of_sign()
        return bytes(signs[c] for c in piece) if all(c in signs for c in piece) else piece.encode()
    if style == "wordpiece":
        return piece.removeprefix("##").encode()
    if match := _FALLBACK_BYTE.fullmatch(piece):
        return bytes([int(match[1], 16)])
    return (piece.replace("▁", " ") if style == "metaspace" else piece).encode()


def _first(text: bytes) -> int:
    if not text:
        return NOTHING
    if 0x80 <= text[0] < 0xC0:  # UTF-8 continuation byte
        return INNER
    return _kind(text.decode("utf-8", "ignore")[:1], text[0])


def _last(text: bytes) -> int:
    if not text:
        return NOTHING
    lead = next((i for i in range(len(text) - 1, -1, -1) if not 0x80 <= text[i] < 0xC0), -1)
    return INNER if lead < 0 else _kind(text[lead:].decode("utf-8", "ignore")[:1], text[lead])


def _kind(character: str, lead: int) -> int:
    """SPACE, LETTER, MARK or HAN; of a character cut short, what most characters with that first byte are."""
    if not character:
        return HAN if 0xE3 <= lead <= 0xE9 or lead == 0xF0 else MARK if lead == 0xE2 else LETTER
    if _HAN_CHARACTER.match(character):
        return HAN
    return SPACE if character.isspace() else LETTER if character.isalnum() or character == "_" else MARK
