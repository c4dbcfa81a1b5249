"""Plain text files, cut into documents by a separator."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO

from lmlab.config import fingerprint, require
from lmlab.data.corpus.base import Corpus, Document
from lmlab.data.corpus.files import describe_files, files_fingerprint, find_files, most_characters, open_text, path_tuple

log = logging.getLogger(__name__)

_READ = 2**16  # characters; a longer line is read in pieces, so that memory does not depend on the text


@dataclass(frozen=True, kw_only=True)
class TextCorpus(Corpus):
    """Text files (`.txt`, also with `.gz`).

    A document that is longer than `max_characters` becomes several, cut at a line end where there is one, else at a space. So a
    single long file still has parts that can be held out for validation, and memory does not depend on the length of a document.

    Args:
        paths: Files or globs.
        separator: What stands between two documents: `blank_lines` (one or more), `line` (every line is a document), `file` (every
            file is one), or any other string, such as `<|endoftext|>`. Line ends of Windows in it count as newlines, as in the text.
        max_characters: Longest document.
    """

    paths: tuple[str, ...]
    separator: str = "blank_lines"
    max_characters: int = 2**16

    def __post_init__(self) -> None:
        """Checks the settings."""
        object.__setattr__(self, "paths", path_tuple(self.paths))
        require(bool(self.paths), self, "paths", "a corpus needs at least one file", "name a file or a glob")
        object.__setattr__(self, "separator", re.sub("\r\n?", "\n", self.separator))  # as reading does with the text
        require(bool(self.separator), self, "separator", "an empty string separates nothing", "use blank_lines, line, file or a string")
        require(self.max_characters >= 1024, self, "max_characters", "shorter pieces tear sentences apart", "set 1024 or more")

    def documents(self) -> Iterator[Document]:
        """Documents in the order of the files."""
        num_cuts = 0
        for path in find_files(self.paths):
            with open_text(path) as file:
                for span in _assemble(self._pieces(file), self.max_characters):
                    num_cuts += span.is_cut
                    yield Document(span.text, f"{path}:{span.line}")
        if num_cuts:
            log.info("documents longer than %s characters were cut, at %s places", f"{self.max_characters:,}", f"{num_cuts:,}")

    def characters_at_most(self) -> float:
        """One for each byte of the files, unless some are packed."""
        return most_characters(find_files(self.paths))

    def fingerprint(self) -> str:
        """Content of the files, separator and longest document."""
        return fingerprint(["text", files_fingerprint(find_files(self.paths)), self.separator, self.max_characters])

    def describe(self) -> dict[str, Any]:
        """Settings, and the number and size of the files."""
        return describe_files(self, self.paths)

    def _pieces(self, file: TextIO) -> Iterator[_Piece]:
        if self.separator not in ("blank_lines", "line", "file"):
            yield from _split_at(file, self.separator)
            return
        at_line_start = True
        while piece := file.readline(_READ):
            is_whole = piece.endswith("\n")
            if self.separator == "blank_lines" and at_line_start and is_whole and piece.isspace():
                yield _Piece("", ends=True, lines=1)
            else:
                yield _Piece(piece, ends=is_whole and self.separator == "line", lines=int(is_whole))
            at_line_start = is_whole


class _Piece(NamedTuple):
    text: str
    ends: bool  # whether the document ends after it
    lines: int  # line ends in it and in the separator after it


class _Span(NamedTuple):
    text: str
    line: int
    is_cut: bool


def _split_at(file: TextIO, separator: str) -> Iterator[_Piece]:
    overlap = len(separator) - 1  # so much of a separator may lie in the next chunk
    carry = ""
    while chunk := file.read(_READ):
        *whole, rest = (carry + chunk).split(separator)
        for part in whole:
            yield _Piece(part, ends=True, lines=part.count("\n") + separator.count("\n"))
        keep = max(0, len(rest) - overlap)
        yield _Piece(rest[:keep], ends=False, lines=rest.count("\n", 0, keep))
        carry = rest[keep:]
    yield _Piece(carry, ends=True, lines=0)


def _assemble(pieces: Iterator[_Piece], max_characters: int) -> Iterator[_Span]:
    parts: list[str] = []
    size, line, start = 0, 1, 1
    for piece in pieces:
        start = start if parts else line
        parts.append(piece.text)
        size, line = size + len(piece.text), line + piece.lines
        while size > max_characters:
            text = "".join(parts)
            cut = _cut_place(text, max_characters)
            yield _Span(text[:cut], start, True)
            start += text.count("\n", 0, cut)
            parts, size = [text[cut:]], size - cut
        if piece.ends:
            if text := "".join(parts).rstrip("\n"):
                yield _Span(text, start, False)
            parts, size = [], 0
    if text := "".join(parts).rstrip("\n"):
        yield _Span(text, start, False)


def _cut_place(text: str, limit: int) -> int:
    for mark in ("\n", " ", "。"):
        place = text.rfind(mark, limit // 2, limit)
        if place >= 0:
            return place + 1
    return limit
