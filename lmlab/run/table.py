"""Runs side by side, without ever ranking what cannot be compared.

A loss is in the unit of its objective and its tokenizer, on one text; so runs are sorted by loss only within one objective and
one set of data. Bits per byte are compared within one corpus.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmlab.errors import CheckpointError
from lmlab.run.directory import RunDirectory
from lmlab.run.numbers import compact, duration, loss
from lmlab.run.record import Record

Sort = Literal["time", "name", "loss", "bits_per_byte", "tokens", "duration"]
SORTS: tuple[Sort, ...] = ("time", "name", "loss", "bits_per_byte", "tokens", "duration")

STATUS_STYLES = {"finished": "green", "running": "cyan", "killed": "yellow", "interrupted": "yellow", "failed": "red", "broken": "red"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run in a table; None where the run does not say.

    Args:
        name: The run's name.
        folder: The folder of the run among those of its name.
        path: The whole path.
        status: As in the record; `killed` for one that says `running` and has no living process; `broken` without a readable record.
        started: ISO time.
        objective: Class name.
        corpus: The corpus as the person named it.
        steps: Optimiser steps.
        tokens: Corpus tokens.
        seconds: Training time.
        loss: Best validation loss, else the last.
        bits_per_byte: From a likelihood, or a pseudo-likelihood.
        ruler: `bits per byte` or `pseudo bits per byte`.
        yardstick: Runs with the same one may be compared by loss.
        text: Runs with the same one may be compared by bits per byte.
        error: Why it failed or is broken.
    """

    name: str
    folder: str
    path: str
    status: str
    started: str = ""
    objective: str = ""
    corpus: str = ""
    steps: float | None = None
    tokens: float | None = None
    seconds: float | None = None
    loss: float | None = None
    bits_per_byte: float | None = None
    ruler: str = ""
    yardstick: str = ""
    text: str = ""
    error: str = ""

    def to_plain(self) -> dict[str, Any]:
        """JSON values; numbers that are not finite become strings, as in `record.json`."""
        return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def summarise(run: RunDirectory) -> Row:
    """Reads one run; a broken one is a row that says so."""
    try:
        record = Record.load(run.record_path)
    except CheckpointError as error:
        return Row(name=run.name, folder=run.path.name, path=str(run.path), status="broken", error=error.why or error.what)
    ruler, bits = record.bits_per_byte() or ("", None)
    data = [record.data[key] for key in sorted(record.data)] or [record.corpus]
    return Row(
        name=run.name,
        folder=run.path.name,
        path=str(run.path),
        status="killed" if record.status == "running" and run.was_claimed() and not run.is_claimed() else record.status,
        started=record.started,
        objective=record.objective_name,
        corpus=record.corpus,
        steps=record.spent.get("steps"),
        tokens=record.spent.get("tokens"),
        seconds=record.spent.get("seconds"),
        loss=record.best.get("val/loss", record.metrics.get("val/loss")),
        bits_per_byte=bits,
        ruler=ruler,
        yardstick=" ".join([record.objective, *data]),
        text=f"{ruler} {record.data.get('corpus') or record.corpus}",
        error=record.error,
    )


def sort_rows(rows: Sequence[Row], by: Sort) -> list[list[Row]]:
    """Sorts rows, in groups where only the members of a group may be compared.

    Args:
        rows: In order of time.
        by: What to sort by; what a run lacks stands last.

    Returns:
        One group for everything, or one for each yardstick with `loss` and for each text with `bits_per_byte`.
    """
    if by == "time":
        return [list(rows)]
    if by == "name":
        return [sorted(rows, key=lambda row: row.name)]
    if by in ("tokens", "duration"):
        return [sorted(rows, key=lambda row: -((row.tokens if by == "tokens" else row.seconds) or 0))]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.yardstick if by == "loss" else row.text, []).append(row)
    return [sorted(group, key=lambda row: _last_if_missing(row.loss if by == "loss" else row.bits_per_byte)) for group in groups.values()]


def print_table(rows: Sequence[Row], by: Sort, console: Console) -> None:
    """Prints rows as a table, or as lines of words where the output is no terminal.

    Args:
        rows: In order of time.
        by: What to sort by.
        console: Where to.
    """
    groups = sort_rows(rows, by)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("name", "run", "status", "objective", "corpus"):
        table.add_column(title, no_wrap=title != "corpus", overflow="fold" if console.is_terminal else "ignore")
    for title in ("steps", "tokens", "val loss", "bits/byte", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    for index, group in enumerate(groups):
        if index:
            table.add_row("")
        for row in group:
            table.add_row(*_cells(row))
    console.print(table, soft_wrap=not console.is_terminal)
    for row in rows:
        if row.error:
            console.print(Text(f"{row.name}/{row.folder}: {row.error.splitlines()[0]}", style="red"), soft_wrap=True)
    if by in ("loss", "bits_per_byte") and len(groups) > 1:
        what = "a loss is in the unit of its objective, tokenizer and text" if by == "loss" else "bits per byte are those of one text"
        console.print(Text(f"{what}: sorted within {len(groups)} groups, which do not compare", style="dim"), soft_wrap=True)
    if any(row.ruler.startswith("pseudo") for row in rows):
        console.print(Text("~ from a pseudo-likelihood, which does not compare with a likelihood", style="dim"), soft_wrap=True)


def _cells(row: Row) -> list[Text]:
    bits = "" if row.bits_per_byte is None else ("~" if row.ruler.startswith("pseudo") else "") + loss(row.bits_per_byte)
    values = [
        row.name,
        f"{_when(row.started)} {row.folder[-6:]}".strip() if row.started else row.folder,
        row.status,
        row.objective,
        row.corpus,
        "" if row.steps is None else compact(row.steps),
        "" if row.tokens is None else compact(row.tokens),
        "" if row.loss is None else loss(row.loss),
        bits,
        "" if row.seconds is None else duration(row.seconds),
    ]
    cells = [Text(value) for value in values]  # Text, so that a name with brackets is not read as markup
    cells[2].stylize(STATUS_STYLES.get(row.status, ""))
    return cells


def _when(iso: str) -> str:
    """A stored time in the reader's own zone."""
    try:
        return datetime.fromisoformat(iso).astimezone().strftime("%d %b %H:%M")
    except ValueError:
        return iso


def _last_if_missing(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value
