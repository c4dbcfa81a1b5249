"""What is done to a text before it is tokenised, and how often it had to be done."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from lmlab.config import check_choices, require
from lmlab.errors import DataError

if TYPE_CHECKING:
    from lmlab.data.corpus.base import Document  # the corpora know how they will be cleaned, so they import this module

_MAX_EXAMPLES = 5
_HASHED_AT_ONCE = 2**16  # characters; a copy of a whole document, word by word, would be many times its size
_MIN_INVALID = 20  # characters; below, a share says nothing, as in a test file of one line

_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_A_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # surrogates that do not stand for an undecodable byte
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # C0 and C1 without tab and newline
_LINE_END = re.compile("\r\n?")
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """How documents are cleaned.

    Args:
        normalization: Unicode form. `nfc` joins letters and accents and changes nothing that a reader sees; `nfkc` also turns
            full-width letters, ligatures and superscripts into plain ones.
        control: What becomes of control characters other than tab and newline: `remove` (those that separate, such as the
            form feed, become a space), `space`, or `keep`. With `remove` and `space`, the line ends of Windows become newlines.
        invalid: What becomes of bytes that are no UTF-8, and of lone surrogates: `replace` them by U+FFFD, `skip` the document,
            or `fail`.
        max_invalid_share: Largest share of such characters among all; beyond it the text probably has another encoding, and the
            build fails.
        min_characters: Documents with fewer characters, spaces at both ends not counted, are dropped.
        duplicates: Whether documents that equal an earlier one, white space aside, are dropped.
    """

    normalization: Literal["none", "nfc", "nfkc"] = "nfc"
    control: Literal["remove", "space", "keep"] = "remove"
    invalid: Literal["replace", "skip", "fail"] = "replace"
    max_invalid_share: float = 0.01
    min_characters: int = 1
    duplicates: Literal["drop", "keep"] = "drop"

    def __post_init__(self) -> None:
        """Checks the settings."""
        check_choices(self)
        is_share = 0 <= self.max_invalid_share <= 1
        require(is_share, self, "max_invalid_share", "a share lies between 0 and 1", "1 switches the check off")
        require(self.min_characters >= 1, self, "min_characters", "an empty document cannot be kept", "set 1 or more")


@dataclass(kw_only=True)
class CleaningCounts:
    """How much was read, dropped and repaired.

    Args:
        num_read: Documents in the corpus.
        num_kept: Documents left.
        num_characters: Characters read.
        num_bytes: UTF-8 bytes tokenised, duplicates included; filled in by `build_store`.
        num_empty: Documents without a visible character.
        num_short: Documents below `min_characters`.
        num_duplicates: Documents equal to an earlier one, white space aside.
        num_skipped: Documents skipped because of invalid characters.
        num_control: Control characters met.
        num_invalid: Invalid bytes and lone surrogates met.
        examples: Where the first invalid characters stand.
    """

    num_read: int = 0
    num_kept: int = 0
    num_characters: int = 0
    num_bytes: int = 0
    num_empty: int = 0
    num_short: int = 0
    num_duplicates: int = 0
    num_skipped: int = 0
    num_control: int = 0
    num_invalid: int = 0
    examples: tuple[str, ...] = ()

    def __add__(self, other: CleaningCounts) -> CleaningCounts:
        """Counts of two stretches of a corpus, one after the other."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "examples"]
        examples = (self.examples + other.examples)[:_MAX_EXAMPLES]
        return CleaningCounts(**{name: getattr(self, name) + getattr(other, name) for name in names}, examples=examples)

    def check(self, config: CleaningConfig, at_most: float | None = None) -> None:
        """Refuses a corpus with too many invalid characters.

        Args:
            config: Says how many are too many.
            at_most: While there is more to read: characters the corpus cannot exceed. Then it is refused only where the rest,
                if it were all valid, could not save it, so that the verdict does not depend on how far one has read.

        Raises:
            DataError: With the places of the first ones.
        """
        total = self.num_characters if at_most is None else at_most
        put_up_with = config.max_invalid_share * total if config.max_invalid_share else 0  # the total may be infinite
        if self.num_invalid > max(_MIN_INVALID, put_up_with):
            share = self.num_invalid / self.num_characters
            raise DataError(
                f"{self.num_invalid:,} of {self.num_characters:,} characters read ({share:.1%}) are not valid UTF-8",
                where="; ".join(self.examples),
                why=f"at most {config.max_invalid_share:.1%} are put up with: the text probably has another encoding",
                remedy="convert it (iconv -f GB18030 -t UTF-8, or -f LATIN1), or raise cleaning.max_invalid_share",
            )

    def summary(self) -> str:
        """One line for the log: what was kept, and what was not."""
        reasons = {
            "empty": self.num_empty,
            "too short": self.num_short,
            "duplicates": self.num_duplicates,
            "skipped as invalid": self.num_skipped,
        }
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
        met = [f"{self.num_control:,} control characters"] if self.num_control else []
        met += [f"{self.num_invalid:,} invalid characters (first at {'; '.join(self.examples)})"] if self.num_invalid else []
        parts = [f"kept {self.num_kept:,} of {self.num_read:,} documents"]
        parts += [f"dropped: {dropped}"] if dropped else []
        parts += [f"met: {', '.join(met)}"] if met else []
        return "; ".join(parts)


def clean(documents: Iterable[Document], config: CleaningConfig, counts: CleaningCounts) -> Iterator[Document]:
    """Cleans documents one by one; duplicates are left for `build_store`, which sees all of them.

    Args:
        documents: Documents of a corpus.
        config: How to clean.
        counts: Is added to as the documents pass.

    Yields:
        What is left, without lone surrogates.

    Raises:
        DataError: On an invalid character, if `config.invalid` is `fail`.
    """
    for document in documents:
        counts.num_read += 1
        counts.num_characters += len(document.text)
        text = document.text
        valid = _validate(text)
        if valid.num_invalid:
            counts.num_invalid += valid.num_invalid
            counts.examples = (*counts.examples, f"{document.source}, character {valid.first + 1}")[:_MAX_EXAMPLES]
            if config.invalid == "fail":
                remedy = "repair the file, or set cleaning.invalid to replace or skip"
                raise DataError("a document is not valid UTF-8", where=counts.examples[-1], why="cleaning.invalid is fail", remedy=remedy)
            if config.invalid == "skip":
                counts.num_skipped += 1
                continue
            text = valid.text
        text = _normalize(_without_control(text, config, counts), config.normalization)
        num_visible = len(text.strip())
        counts.num_empty += num_visible == 0
        counts.num_short += 0 < num_visible < config.min_characters
        if num_visible >= config.min_characters:
            counts.num_kept += 1
            yield document._replace(text=text)


def text_hash(text: str) -> int:
    """64-bit hash of the words of a text: texts that differ in white space only have the same one.

    Among 10^8 documents, two different ones share it with probability 0.03 %.

    Args:
        text: Without lone surrogates.
    """
    digest = hashlib.blake2b(digest_size=8)
    begun = inside_word = False
    for start in range(0, len(text), _HASHED_AT_ONCE):
        stretch = text[start : start + _HASHED_AT_ONCE]
        if words := " ".join(stretch.split()):
            if begun and (stretch[0].isspace() or not inside_word):
                digest.update(b" ")
            digest.update(words.encode())
            begun = True
        inside_word = not stretch[-1].isspace()
    return int.from_bytes(digest.digest(), "little")


class _Valid(NamedTuple):
    text: str
    num_invalid: int
    first: int


def _validate(text: str) -> _Valid:
    if text.isascii():
        return _Valid(text, 0, 0)
    first = _SURROGATE.search(text)
    if first is None:
        return _Valid(text, 0, 0)
    count = sum(1 for _ in _SURROGATE.finditer(text))
    # back to the bytes, so that a broken sequence becomes one U+FFFD where Unicode says so, instead of one for each byte
    repaired = _NOT_A_BYTE.sub(_REPLACEMENT, text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return _Valid(repaired, count, first.start())


def _without_control(text: str, config: CleaningConfig, counts: CleaningCounts) -> str:
    if config.control != "keep" and "\r" in text:
        text = _LINE_END.sub("\n", text)
    found = sum(1 for _ in _CONTROL.finditer(text))
    counts.num_control += found
    if not found or config.control == "keep":
        return text
    return _CONTROL.sub(" " if config.control == "space" else lambda match: " " if match.group().isspace() else "", text)


def _normalize(text: str, form: Literal["none", "nfc", "nfkc"]) -> str:
    return text if form == "none" or text.isascii() else unicodedata.normalize(form.upper(), text)  # type: ignore[arg-type]
