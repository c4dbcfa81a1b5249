"""A config from a stranger given to `lmlab fit` itself: refused in a few lines, nothing of it runs, nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmlab.cli import main

HOSTILE = sorted((Path(__file__).parent / "hostile").glob("*.yaml"))
BASE = Path(__file__).parents[2] / "configs/pretrain/mlm.yaml"


def refused(arguments: list[str], marker: Path, capsys: pytest.CaptureFixture[str]) -> str:
    before = {path.name for path in marker.parent.iterdir()}
    assert main(["fit", *arguments]) == 2
    assert not marker.exists()
    assert {path.name for path in marker.parent.iterdir()} - before <= {"__pycache__"}, "no run, no file"
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "  do:" in error, "an error says what to do"
    return error


def test_there_are_as_many_as_ways_in() -> None:
    assert len(HOSTILE) >= 14


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path.stem)
@pytest.mark.parametrize("as_overlay", [True, False], ids=["overlay", "alone"])
def test_a_hostile_config_is_refused(path: Path, as_overlay: bool, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused([*(["-c", str(BASE)] if as_overlay else []), "-c", str(path)], marker, capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "evilmod.Thing"],
        ["--model.class_path=evilmod.Thing"],
        ["--model={class_path: evilmod.Thing}"],
        ["--data", "evilmod.Thing"],
        ["--trainer.callbacks+=evilmod.Thing"],
        ["--trainer.callbacks+={class_path: subprocess.Popen, init_args: {args: [touch, it-ran]}}"],
        ["--trainer.logger=evilmod.Thing"],
        ["--trainer.strategy=evilmod.Thing"],
        ["--trainer.plugins=[evilmod.Thing]"],
        ["--trainer.profiler=evilmod.Thing"],
        ["--model.help=evilmod.Thing"],
        ["--data.corpus={class_path: evilmod.Thing}"],
        ["--model.optimizer.name=evilmod.Thing"],
        ["--name=../outside"],
        ["--config=https://example.com/a.yaml"],
        ["--allow=os"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_hostile_argument_is_refused(arguments: list[str], marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["-c", str(BASE), *arguments], marker, capsys)
