"""`record.json` as a file format: what another program reads in it, and what a damaged one does."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from lmlab.errors import CheckpointError
from lmlab.run.record import FORMAT, Git, Record, now

FULL = Record(
    name="clm",
    seed=3,
    status="finished",
    question="ist CLM 更好?",
    objective="lmlab.objectives.clm.CausalLM",
    corpus="austen",
    started=now(),
    ended=now(),
    config_hash="0123456789abcdef",
    data={"corpus": "aa", "tokenizer": "bb"},
    git=Git(commit="c0ffee", dirty=True),
    budget={"tokens": 1e6},
    spent={"steps": 10, "flops": 123_456_789_012_345_678, "seconds": 1.5},
    metrics={"val/loss": 3.25},
    best={"step": 8, "val/loss": 3.125},
    anchors={"unigram": 4.5},
    num_parameters=1000,
    tokens_per_second=12.5,
    flops_utilisation=0.25,
)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    FULL.save(tmp_path / "record.json")
    assert Record.load(tmp_path / "record.json") == FULL
    content = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert content["format"] == FORMAT
    assert content["question"] == "ist CLM 更好?"
    assert content["git"] == {"commit": "c0ffee", "dirty": True}
    assert content["spent"]["flops"] == 123_456_789_012_345_678  # a whole number, digit for digit


def test_a_diverged_run_still_writes_strict_json(tmp_path: Path) -> None:
    Record(name="x", seed=0, metrics={"train/loss": math.nan, "val/loss": math.inf}).save(tmp_path / "record.json")
    json.loads((tmp_path / "record.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    metrics = Record.load(tmp_path / "record.json").metrics
    assert math.isnan(metrics["train/loss"]) and metrics["val/loss"] == math.inf


def test_new_fields_are_passed_over_but_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"format": FORMAT, "name": "x", "seed": 1, "invented_later": [1]}))
    assert Record.load(path) == Record(name="x", seed=1)
    path.write_text(json.dumps({"format": FORMAT + 1, "name": "x", "seed": 1}))
    with pytest.raises(CheckpointError, match="newer lmlab") as error:
        Record.load(path)
    assert error.value.remedy == "update lmlab"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"name": "x"}',
        f'{{"format": {FORMAT}}}',
        f'{{"format": {FORMAT}, "name": "x", "seed": "one"}}',
        f'{{"format": {FORMAT}, "name": "x", "seed": 1, "status": "asleep"}}',
        f'{{"format": {FORMAT}, "name": "x", "seed": 1, "metrics": [1]}}',
        f'{{"format": {FORMAT}, "name": "x", "seed": 1, "metrics": {{"val/loss": null}}}}',
        f'{{"format": {FORMAT}, "name": "x", "seed": 1, "git": {{}}}}',
        f'{{"format": {FORMAT}, "name": "x", "seed": 1, "git": "c0ffee"}}',
    ],
)
def test_a_damaged_record_is_a_lab_error_that_names_the_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(CheckpointError) as error:
        Record.load(path)
    assert error.value.where == str(path)


def test_a_missing_record_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no record"):
        Record.load(tmp_path / "record.json")


def test_now_has_a_zone_and_sorts_as_text() -> None:
    first, second = now(), now()
    assert datetime.fromisoformat(first).utcoffset() == timedelta(0)
    assert abs(datetime.fromisoformat(first) - datetime.now(timezone.utc)) < timedelta(minutes=1)
    assert first <= second and len(first) == len(second)


def test_nobody_is_told_to_delete_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step=0000001.ckpt").touch()
    for content in (None, "junk"):
        if content:
            (tmp_path / "record.json").write_text(content)
        with pytest.raises(CheckpointError) as caught:
            Record.load(tmp_path / "record.json")
        assert "delete" not in caught.value.remedy and "checkpoints" in caught.value.remedy
