"""`metrics.csv` read back with Python's csv module, after new columns, resumes and kills."""

from __future__ import annotations

import csv
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.errors import DataError
from lmlab.run.metrics import MetricsWriter, read_metrics


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[MetricsWriter]:
    writer = MetricsWriter(tmp_path / "metrics.csv")
    yield writer
    writer.close()


def plain_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def test_values_of_one_step_share_a_row_and_are_on_disk_at_once(tmp_path: Path, writer: MetricsWriter) -> None:
    writer.append(1, {"train/loss": 2.5, "tokens": 123_456_789_012})
    writer.append(1, {"val/loss": 2.25})
    writer.append(2, {"train/loss": 2.0, "tokens": 200_000_000_000})
    writer.append(2, {"val/loss": 1.5})  # no new column this time: the row is widened in place
    assert plain_rows(tmp_path / "metrics.csv") == [
        {"step": "1", "train/loss": "2.5", "tokens": "123456789012", "val/loss": "2.25"},
        {"step": "2", "train/loss": "2", "tokens": "200000000000", "val/loss": "1.5"},
    ]


def test_a_row_widened_by_shorter_values_leaves_no_rest(tmp_path: Path, writer: MetricsWriter) -> None:
    writer.append(1, {"loss": 2.123456789})
    writer.append(1, {"loss": 2})
    assert (tmp_path / "metrics.csv").read_bytes() == b"step,loss\n1,2\n"


def test_float32_values_come_back_exactly_and_nan_stays_nan(tmp_path: Path, writer: MetricsWriter) -> None:
    values = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    for step, value in enumerate(values):
        writer.append(step, {"loss": float(value)})
    writer.append(50, {"loss": math.nan})
    writer.append(51, {"loss": math.inf})
    read = read_metrics(tmp_path / "metrics.csv").series("loss")
    np.testing.assert_array_equal(np.array(read.y[:50], dtype=np.float32), values)
    assert math.isnan(read.y[50]) and read.y[51] == math.inf
    assert read.x == list(range(52))


def test_drop_after_keeps_the_past_and_the_run_goes_on_in_place(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsWriter(path)
    for step in range(1, 11):
        first.append(step, {"loss": step / 10})
    first.close()
    second = MetricsWriter(path)
    second.drop_after(6)
    second.append(7, {"loss": 70.0, "val/loss": 7.0})
    assert [(r["step"], r["loss"]) for r in plain_rows(path)] == [*((str(s), str(s / 10)) for s in range(1, 7)), ("7", "70")]
    assert second.last_step == 7
    second.close()


def test_a_torn_last_row_is_dropped_on_reading_and_on_resuming(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,2.5\n2,2.")
    assert read_metrics(path).rows == [{"step": 1, "loss": 2.5}]
    writer = MetricsWriter(path)
    writer.append(2, {"loss": 2.25})
    writer.close()
    assert path.read_text() == "step,loss\n1,2.5\n2,2.25\n"


def test_a_row_without_the_position_takes_the_last_one_seen(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,tokens,loss,val/loss\n1,100,3,\n2,,,2.5\n3,300,2,2.25\n")
    assert read_metrics(path).series("val/loss", x="tokens") == ([100, 300], [2.5, 2.25])
    assert read_metrics(path).last() == {"tokens": 300, "loss": 2, "val/loss": 2.25}


def test_missing_and_empty_files_read_as_empty(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none.csv").rows == []
    (tmp_path / "empty.csv").touch()
    assert read_metrics(tmp_path / "empty.csv").columns == ["step"]
    MetricsWriter(tmp_path / "empty.csv").append(1, {"a": 1.5})
    assert plain_rows(tmp_path / "empty.csv") == [{"step": "1", "a": "1.5"}]


@pytest.mark.parametrize(("content", "where"), [("name,value\na,1\n", ":1"), ("step,loss\n1,2\n2,abc\n", ":3")])
def test_a_foreign_file_is_refused_with_its_line(tmp_path: Path, content: str, where: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    with pytest.raises(DataError) as error:
        MetricsWriter(path)
    assert error.value.where == f"{path}{where}"
    assert path.read_text() == content


names = st.sampled_from(["a", "b", "c,d", 'e"f', "g\nh", "損失"])
calls = st.lists(st.tuples(st.integers(0, 5), st.dictionaries(names, st.floats(width=32, allow_nan=False), min_size=1)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(calls=calls, reopen=st.integers(0, 12))
def test_any_sequence_of_calls_equals_a_list_of_dicts(tmp_path_factory: pytest.TempPathFactory, calls: list, reopen: int) -> None:
    path = tmp_path_factory.mktemp("m") / "metrics.csv"
    expected: list[dict[str, float]] = []
    writer = MetricsWriter(path)
    for index, (step, values) in enumerate(calls):
        if index == reopen:
            writer.close()
            writer = MetricsWriter(path)
        writer.append(step, values)
        if expected and expected[-1]["step"] == step:
            expected[-1].update(values)
        else:
            expected.append({"step": step, **values})
    writer.close()
    assert [{k: np.float32(v) for k, v in row.items()} for row in read_metrics(path).rows] == [
        {k: np.float32(v) for k, v in row.items()} for row in expected
    ]


def test_every_row_before_a_kill_is_in_the_file(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lmlab.run.metrics import MetricsWriter\n"
        "w = MetricsWriter(Path(sys.argv[1]))\n"
        "for step in range(10**9):\n"
        "    w.append(step, {'loss': step / 7})\n"
        "    if step % 10 == 0: w.append(step, {'val/loss': step / 3})\n"
        "    print(step, flush=True)\n"
    )
    path = tmp_path / "metrics.csv"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        announced = int(process.stdout.read().splitlines()[-1])
    rows = plain_rows(path)
    assert len(rows) - 1 in (announced, announced + 1)
    assert [int(r["step"]) for r in rows] == list(range(len(rows)))
    assert all(float(r["loss"]) == pytest.approx(int(r["step"]) / 7, rel=1e-8) for r in rows)
