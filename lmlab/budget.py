"""When a run ends, and how much it has spent: steps, tokens, FLOPs or seconds, all counted, one of them the limit."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, Literal

from lmlab.config import from_dict
from lmlab.errors import BudgetError

Unit = Literal["steps", "tokens", "flops", "seconds"]
UNITS: tuple[Unit, ...] = ("steps", "tokens", "flops", "seconds")
"""What a budget may be counted in."""

COUNT_SUFFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
"""Multipliers of counts. A small `m` is not among them: it would be read as milli or as minutes."""

TIME_SUFFIXES = {"": 1, "s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
"""Multipliers of times."""

AMOUNT = re.compile(r"([0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)")
"""A number, and a suffix or none: `10M`, `1e15`, `2 h`."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """How much a run has spent so far, over all ranks.

    Args:
        steps: Steps of the optimiser.
        examples: Examples of the view.
        tokens: Raw corpus tokens: before corruption, without padding or special tokens, each once.
        supervised_tokens: Positions that carried a loss.
        flops: Forward and backward, attention as computed, no recomputation.
        seconds: Time spent training, over all starts of the run.
    """

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    flops: int = 0
    seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        """Both together, field by field."""
        return Spent(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def to_plain(self) -> dict[str, int | float]:
        """The JSON form; integers stay exact."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Spent:
        """Reads the JSON form.

        Raises:
            ConfigError: On a key that is not a field.
        """
        return from_dict(cls, data)


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """When a run ends. Exactly one of the four limits is set; the schedules and the milestones follow from it.

    Amounts may carry a suffix: `10M` tokens, `1e15` or `1P` FLOPs, `2h` or `90 min`.

    Args:
        steps: Steps of the optimiser.
        tokens: Raw corpus tokens consumed, each counted once.
        flops: FLOPs, forward and backward.
        seconds: Seconds of training; resuming is not exact with this one.
        validations: How often to validate, evenly over the budget, the last time at its end; 0 for never.
        checkpoints: How often to write a checkpoint, evenly over the budget and at its end; `run.keep` says how many stay.
    """

    steps: int | float | str | None = None
    tokens: int | float | str | None = None
    flops: int | float | str | None = None
    seconds: int | float | str | None = None
    validations: int = 10
    checkpoints: int = 10

    def __post_init__(self) -> None:
        """Refuses anything but one positive limit."""
        given: list[Unit] = [unit for unit in UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            raise BudgetError(
                f"the budget has {len(given)} limits" + (f": {', '.join(given)}" if given else ""),
                where="budget",
                why="a run ends by exactly one of steps, tokens, flops, seconds",
                remedy="set one of them, for example `tokens: 10M`; an overlay sets that of its base to null",
            )
        for field in ("validations", "checkpoints"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise BudgetError(f"budget.{field} = {value!r} is not a count", where=f"budget.{field}", remedy="set 0 or more")
        parse_amount(getattr(self, given[0]), given[0])

    @property
    def unit(self) -> Unit:
        """Which of the four is the limit."""
        return next(unit for unit in UNITS if getattr(self, unit) is not None)

    @property
    def limit(self) -> int | float:
        """The limit in its unit: an int, but a float for seconds."""
        return parse_amount(getattr(self, self.unit), self.unit)

    def progress(self, spent: Spent) -> float:
        """Share of the budget that is spent, in [0, 1]."""
        return min(1.0, getattr(spent, self.unit) / self.limit)

    def is_exhausted(self, spent: Spent) -> bool:
        """Whether the run is to stop. The step that crosses the limit is the last."""
        return getattr(spent, self.unit) >= self.limit

    def milestones(self, num_milestones: int, spent: Spent) -> int:
        """How many of some milestones, spread evenly over the budget, are passed.

        A pure function of what is spent, so a resumed run agrees with one that was never stopped; a milestone is due whenever
        the number differs from that before the step. Several passed in one step are due once.

        Args:
            num_milestones: How many there are; the last is the end of the budget.
            spent: So far.
        """
        # whole numbers all the way where the unit has them: 0.29 * 100 is below 29 in floating point
        return min(num_milestones, int(getattr(spent, self.unit) * num_milestones // self.limit))

    def is_due(self, num_milestones: int, before: Spent, after: Spent) -> bool:
        """Whether a milestone lies in a step.

        Args:
            num_milestones: How many there are over the whole budget.
            before: Spent before the step.
            after: Spent after it.
        """
        return self.milestones(num_milestones, after) > self.milestones(num_milestones, before)


def parse_amount(value: int | float | str, unit: Unit) -> int | float:
    """Reads an amount as a person writes it.

    Args:
        value: A number, or a number with a suffix: `10M`, `1e15`, `2h`.
        unit: What is counted; decides which suffixes there are.

    Returns:
        A positive int, or a positive float for seconds.

    Raises:
        BudgetError: If it is not a positive amount, or not a whole one where only whole ones make sense.
    """
    suffixes = TIME_SUFFIXES if unit == "seconds" else COUNT_SUFFIXES
    match = AMOUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    known = match is not None and match[2] in suffixes
    if isinstance(value, bool) or (isinstance(value, str) and not known):
        raise BudgetError(
            f"budget.{unit} = {value!r} is not an amount",
            where=f"budget.{unit}",
            why=f"a number, or a number followed by one of {', '.join(s for s in suffixes if s)}",
            remedy=f"write for example `{unit}: {'2h' if unit == 'seconds' else '10M'}`",
        )
    # decimal, because 2.05 * 10**6 is not whole in binary
    amount = Decimal(match[1].replace("_", "")) * suffixes[match[2]] if match else Decimal(value)
    if not (amount.is_finite() and 0 < amount < Decimal(sys.float_info.max)):
        raise BudgetError(
            f"budget.{unit} = {value!r} cannot be spent", where=f"budget.{unit}", why="a budget is positive and finite", remedy="raise it"
        )
    if unit == "seconds":
        return float(amount)
    whole = round(amount)
    if whole != amount:
        raise BudgetError(
            f"budget.{unit} = {value!r} is not whole", where=f"budget.{unit}", why=f"{unit} are counted", remedy=f"write {max(1, whole)}"
        )
    return whole


def describe(spent: Spent) -> str:
    """One line a person reads at a glance: `1.2 k steps · 3.1 M tokens · 0.5 M supervised · 1.0e14 FLOPs · 3 min 34 s`.

    Args:
        spent: What is spent. Supervised tokens are given in the unit of the tokens, so that the two compare.
    """
    _, suffix = _scale(spent.tokens)
    supervised = spent.supervised_tokens / COUNT_SUFFIXES[suffix]
    digits = 0 if not suffix else 1 if supervised >= 0.95 else 2
    parts = [
        f"{_count(spent.steps)} step{'s' if spent.steps != 1 else ''}",
        f"{_count(spent.tokens)} tokens",
        f"{supervised:.{digits}f}{' ' if suffix else ''}{suffix} supervised",
        f"{float(spent.flops):.1e}".replace("e+", "e") + " FLOPs",
        describe_seconds(spent.seconds),
    ]
    return " · ".join(parts)


def describe_seconds(seconds: float) -> str:
    """A length of time: `4.2 s`, `3 min 34 s`, `2 h 5 min`, `1 d 3 h`.

    Args:
        seconds: Zero or more.
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    for name, size, below, smaller in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        whole = round(seconds / smaller)
        per_unit = size // smaller
        if whole >= per_unit:
            return f"{whole // per_unit} {name} {whole % per_unit} {below}"
    return f"{round(seconds)} s"


def _scale(value: float) -> tuple[float, str]:
    """A count in the largest unit it fills, and that unit's suffix."""
    for suffix in ("T", "B", "M", "k"):
        if value >= 0.9995 * COUNT_SUFFIXES[suffix]:
            return value / COUNT_SUFFIXES[suffix], suffix
    return value, ""


def _count(value: int) -> str:
    scaled, suffix = _scale(value)
    return f"{scaled:.{1 if scaled < 99.95 else 0}f} {suffix}" if suffix else str(value)
