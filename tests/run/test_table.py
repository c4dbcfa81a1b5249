"""The table of runs: what is compared with what, and what a damaged run looks like."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from lmlab.run.directory import RunDirectory, create_run
from lmlab.run.find import list_runs
from lmlab.run.record import Record, now
from lmlab.run.table import Row, Sort, print_table, sort_rows, summarise


def make(
    root: Path, name: str, loss: float, objective: str = "a.MLM", data: str = "d", bits: dict[str, float] | None = None
) -> RunDirectory:
    run = create_run(root, name, 0)
    Record(
        name=name, seed=0, status="finished", started=now(), objective=objective, corpus="austen",
        data={"corpus": data}, best={"val/loss": loss}, metrics=bits or {}, spent={"steps": 10, "tokens": 1000, "seconds": 5},
    ).save(run.record_path)  # fmt: skip
    return run


def names(groups: list[list[Row]]) -> list[list[str]]:
    return [[row.name for row in group] for group in groups]


def shown(rows: list[Row], by: Sort = "time", width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_table(rows, by, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_losses_of_different_objectives_or_texts_are_never_in_one_ranking(tmp_path: Path) -> None:
    make(tmp_path, "mlm1", 3.0)
    make(tmp_path, "clm1", 2.0, "a.CLM")
    make(tmp_path, "mlm2", 2.5)
    make(tmp_path, "other", 1.0, data="another text")
    rows = [summarise(run) for run in list_runs(tmp_path)]
    assert names(sort_rows(rows, "loss")) == [["mlm2", "mlm1"], ["clm1"], ["other"]]
    assert "within 3 groups, which do not compare" in shown(rows, "loss")
    assert names(sort_rows(rows, "time")) == [["mlm1", "clm1", "mlm2", "other"]]
    assert "do not compare" not in shown(rows)


def test_bits_per_byte_compare_objectives_on_one_text_but_not_with_a_pseudo_likelihood(tmp_path: Path) -> None:
    make(tmp_path, "clm", 2.0, "a.CLM", bits={"val/bits_per_byte": 2.5})
    make(tmp_path, "rnn", 2.0, "a.RNN", bits={"val/bits_per_byte": 2.25})
    make(tmp_path, "mlm", 2.0, "a.MLM", bits={"test/pseudo_bits_per_byte": 1.0})
    make(tmp_path, "none", 2.0, "a.CLM")
    make(tmp_path, "far", 2.0, "a.CLM", data="another text", bits={"val/bits_per_byte": 1.0})
    rows = [summarise(run) for run in list_runs(tmp_path)]
    assert ["rnn", "clm"] in names(sort_rows(rows, "bits_per_byte"))
    assert ["mlm"] in names(sort_rows(rows, "bits_per_byte")) and ["far"] in names(sort_rows(rows, "bits_per_byte"))
    text = shown(rows)
    assert "~1" in text and "pseudo-likelihood" in text


def test_broken_killed_and_foreign_runs_are_rows_too(tmp_path: Path) -> None:
    broken, killed, empty = (make(tmp_path, name, 1.0) for name in ("broken", "killed", "empty"))
    broken.record_path.write_text('{"format": 1, "name"')
    Record(name="killed", seed=0, status="running", started=now()).save(killed.record_path)
    empty.record_path.unlink()
    killed.claim().release()
    rows = {row.name: row for row in map(summarise, list_runs(tmp_path))}
    assert {name: row.status for name, row in rows.items()} == {"broken": "broken", "killed": "killed", "empty": "broken"}
    lock = killed.claim()
    assert summarise(killed).status == "running"
    lock.release()
    text = shown(list(rows.values()))
    assert "broken" in text and "killed" in text


def test_names_with_markup_are_shown_as_they_are(tmp_path: Path) -> None:
    run = create_run(tmp_path, "x", 0)
    Record(name="x", seed=0, corpus="[red]a[/]", objective="m.[bold]", error="[blink]boom\nsecond line", status="failed").save(
        run.record_path
    )
    text = shown([summarise(run)])
    assert "[red]a[/]" in text and "[bold]" in text and "[blink]boom" in text and "second line" not in text


def test_json_is_strict_even_after_a_divergence(tmp_path: Path) -> None:
    make(tmp_path, "x", float("nan"))
    plain = summarise(list_runs(tmp_path)[0]).to_plain()
    assert json.loads(json.dumps(plain, allow_nan=False))["loss"] == "nan"
