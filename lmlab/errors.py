"""Errors a person can act on: what went wrong, where, why, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LabError(Exception):
    """Base of every error lmlab raises on purpose.

    Args:
        what: One sentence that names the value at fault.
        where: `file:line`, `file row N`, or a dotted setting such as `backbone.num_heads`.
        why: The rule that was broken.
        remedy: What to change so that it works.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", remedy: str = "") -> None:
        self.what, self.where, self.why, self.remedy = what, where, why, remedy
        lines = [what]
        lines += [f"  {label} {text}" for label, text in (("where:", where), ("why:  ", why), ("do:   ", remedy)) if text]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        """Survives pickling, because loader workers send their errors to the parent process."""
        return _rebuild, (type(self), self.what, self.where, self.why, self.remedy)


class ConfigError(LabError):
    """A setting that is unknown, impossible, or has no effect."""


class DataError(LabError):
    """A corpus, a store or a row that cannot be used as it is."""


class CheckpointError(LabError):
    """A checkpoint that is missing, broken, or does not fit."""


class DamagedError(CheckpointError):
    """A checkpoint that is not what was written: the one before it may be whole."""


class BudgetError(LabError):
    """A budget that cannot be spent, or that a schedule cannot follow."""


def _rebuild(cls: type[LabError], what: str, where: str, why: str, remedy: str) -> LabError:
    return cls(what, where=where, why=why, remedy=remedy)


def nearest(word: str, choices: Iterable[str]) -> str:
    """Says which of `choices` was probably meant, as the end of a sentence.

    Args:
        word: What the user wrote.
        choices: What is allowed.

    Returns:
        `did you mean 'x'?`, or the list of choices when none is close.
    """
    names = sorted(choices)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"choose one of: {', '.join(names)}"
