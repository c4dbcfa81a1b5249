"""`lmlab runs` and `lmlab report`, from their arguments to what they print."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lmlab.cli.report import main as report
from lmlab.cli.runs import main as runs
from lmlab.errors import CheckpointError
from lmlab.run.directory import RunDirectory, create_run
from lmlab.run.record import Record, now


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMLAB_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def make(root: Path, name: str, loss: float = 2.5, status: str = "finished") -> RunDirectory:
    run = create_run(root, name, 0)
    record = Record(name=name, seed=0, status=status, started=now(), objective="lmlab.objectives.clm.CLM", best={"val/loss": loss})  # type: ignore[arg-type]
    record.save(run.record_path)
    return run


def test_an_empty_folder_is_no_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs([]) == 0
    out = capsys.readouterr()
    assert out.out == "" and "no runs in" in out.err and str(root) in out.err
    assert runs(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_pipe_gets_one_whole_line_for_each_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "n" * 80
    make(root, long)
    make(root, "b", 3.25, "failed")
    assert runs([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].split()[:4] == ["name", "run", "status", "objective"]
    assert lines[1].startswith(long) and "2.5" in lines[1] and "CLM" in lines[1]
    assert "failed" in lines[2] and "3.25" in lines[2]
    assert "\x1b" not in "".join(lines)


def test_a_name_and_an_order_may_be_asked_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, loss in (("a", 3.0), ("b", 1.0), ("a", 2.0)):
        make(root, name, loss)
    runs(["a", "--json"])
    assert [row["loss"] for row in json.loads(capsys.readouterr().out)] == [3.0, 2.0]
    runs(["--sort", "loss"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["b", "a", "a"]
    with pytest.raises(CheckpointError) as error:
        runs(["aa"])
    assert error.value.remedy == "did you mean 'a'?"
    with pytest.raises(SystemExit):
        runs(["--jso"])  # abbreviations would change their meaning when an option is added


def test_a_report_is_built_for_a_name_and_opened_if_asked(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(root, "a")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert report(["a"]) == 0
    assert capsys.readouterr().out.strip() == str(run.report_path) and run.report_path.exists()
    assert opened == []
    report([str(run.path), "--open"])
    assert opened == [run.report_path.resolve().as_uri()]
    with pytest.raises(CheckpointError, match="no run 'b'"):
        report(["b"])


def test_neither_needs_torch() -> None:
    code = "import sys, lmlab.cli.runs, lmlab.cli.report; print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
