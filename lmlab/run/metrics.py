"""`metrics.csv`: one row a step, written so that it survives a kill and is continued in place."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lmlab.cache import write_atomic
from lmlab.errors import DataError

STEP = "step"
EXACT_INTEGERS = 2**53  # beyond it a float no longer tells neighbouring integers apart


class Series(NamedTuple):
    """One curve.

    Args:
        x: Positions, ascending as they were logged.
        y: Values, as many; may hold NaN.
    """

    x: list[float]
    y: list[float]


class Metrics(NamedTuple):
    """A whole `metrics.csv` in memory.

    Args:
        columns: Names, `step` first.
        rows: One dict a step, without the cells that are empty.
    """

    columns: list[str]
    rows: list[dict[str, float]]

    def series(self, name: str, x: str = STEP) -> Series:
        """One column over another.

        Args:
            name: The column of values.
            x: The column of positions; a row that lacks it takes the last one seen.
        """
        xs, ys, position = [], [], math.nan
        for row in self.rows:
            position = row.get(x, position)
            if name in row and not math.isnan(position):
                xs.append(position)
                ys.append(row[name])
        return Series(xs, ys)

    def last(self) -> dict[str, float]:
        """The last value of every column but `step`."""
        values = {name: value for row in self.rows for name, value in row.items()}
        values.pop(STEP, None)
        return values


class MetricsWriter:
    """Appends to `metrics.csv`; each row is in the hands of the system when `append` returns.

    Args:
        path: The file; an existing one is continued, and a last row that was torn by a crash is dropped.

    Raises:
        DataError: If the file is there but is not one of ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns = [STEP]
        self._row: dict[str, float] = {}
        self._offset = 0  # where the last row begins, so that more values of its step can join it
        self._file: BinaryIO | None = None
        if path.exists():
            self._adopt()
        else:
            self._rewrite([])

    @property
    def last_step(self) -> int:
        """The step of the last row, -1 before the first."""
        return int(self._row.get(STEP, -1))

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Writes values of one step; further values of the step written last join its row.

        Args:
            step: Optimiser step.
            values: Metrics by name; a name not seen before becomes a new column.
        """
        joins = self._row.get(STEP) == step
        row = {**(self._row if joins else {}), STEP: step, **values}
        new = [name for name in row if name not in self.columns]
        if new:
            rows = read_metrics(self.path).rows
            self.columns += sorted(new)
            self._rewrite([*(rows[:-1] if joins else rows), row])
            return
        file = self._open()
        if not joins:
            self._offset = file.seek(0, io.SEEK_END)
        file.seek(self._offset)
        file.write(_line(row.get(name) for name in self.columns))
        file.truncate()  # after the write, not before: a kill in between must not lose the row that is being widened
        self._row = row

    def drop_after(self, step: int) -> None:
        """Drops the rows of later steps: what a killed run did after the checkpoint it is resumed from is about to happen again.

        Args:
            step: The last step to keep.
        """
        rows = [row for row in read_metrics(self.path).rows if row.get(STEP, 0) <= step]
        self._rewrite(rows)

    def close(self) -> None:
        """Closes the file; a later `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BinaryIO:
        if self._file is None:
            # Unbuffered: a row is one system call, so that it is whole in the file or not there at all when the process is killed.
            self._file = self.path.open("r+b", buffering=0)
            self._file.seek(0, io.SEEK_END)
        return self._file

    def _rewrite(self, rows: list[dict[str, float]]) -> None:
        self.close()
        lines = [_line(self.columns), *(_line(row.get(name) for name in self.columns) for row in rows)]
        write_atomic(self.path, b"".join(lines))
        self._row = rows[-1] if rows else {}
        self._offset = sum(map(len, lines[:-1])) if rows else len(lines[0])

    def _adopt(self) -> None:
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            content = content[: content.rfind(b"\n") + 1]
        metrics = _parse(content, self.path)
        self.columns = metrics.columns
        self._rewrite(metrics.rows)


def read_metrics(path: Path) -> Metrics:
    """Reads `metrics.csv`, also while it is being written: a torn last row is passed over.

    Args:
        path: The file; a missing one reads as empty.

    Raises:
        DataError: If it is not a table of metrics.
    """
    if not path.exists():
        return Metrics([STEP], [])
    content = path.read_bytes()
    return _parse(content[: content.rfind(b"\n") + 1], path)


def _parse(content: bytes, path: Path) -> Metrics:
    if not content:
        return Metrics([STEP], [])
    reader = csv.reader(io.StringIO(content.decode("utf-8", "replace"), newline=""))
    columns = next(reader)
    if STEP not in columns:
        raise DataError("this is not a table of metrics", where=f"{path}:1", why=f"it has no column '{STEP}'", remedy="move the file away")
    rows: list[dict[str, float]] = []
    for cells in reader:
        try:
            rows.append({name: float(cell) for name, cell in zip(columns, cells, strict=False) if cell})
        except ValueError as error:
            raise DataError(
                "a metric is not a number", where=f"{path}:{reader.line_num}", why=str(error), remedy="mend or remove the row"
            ) from error
    return Metrics(columns, rows)


def _line(cells: Iterable[float | str | None]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow([_cell(value) for value in cells])
    return text.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if math.isfinite(value) and abs(value) < EXACT_INTEGERS and value == int(value):
        return str(int(value))
    return format(value, ".9g")  # nine digits bring any float32 back exactly
