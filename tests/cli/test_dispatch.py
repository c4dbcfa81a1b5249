"""`lmlab` itself: instant help, the nearest command, errors without tracebacks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lmlab
from lmlab.cli import dispatch
from lmlab.cli.dispatch import COMMANDS, Command, main
from lmlab.errors import DataError, LabError

ROOT = Path(__file__).parents[2]
MAX_SECONDS = 0.5  # what feels instant, the start of Python included
TRIES = 5  # the best of: other work on the machine is not the program's


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmlab", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("completion", "bash"), ("fitt",)])
def test_what_needs_no_torch_is_instant(arguments: tuple[str, ...]) -> None:
    seconds = []
    for _ in range(TRIES):
        started = time.perf_counter()
        run(*arguments)
        seconds.append(time.perf_counter() - started)
        if seconds[-1] < MAX_SECONDS:
            break
    assert min(seconds) < MAX_SECONDS


def test_help_teaches_every_command_and_three_calls() -> None:
    done = run()
    assert done.returncode == 0
    assert [name for name in COMMANDS if f"\n  {name} " not in done.stdout] == []
    assert done.stdout.count("\n  lmlab ") >= 3
    assert max(map(len, done.stdout.splitlines())) <= 140
    assert run("--help").stdout == run("help").stdout == done.stdout


def test_version_is_the_packages() -> None:
    assert run("--version").stdout.strip() == lmlab.__version__
    assert f'version = "{lmlab.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_importing_lmlab_is_light_and_unknown_names_are_errors() -> None:
    code = "import lmlab, sys; print(sorted({'torch', 'lightning', 'numpy', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="laod"):
        lmlab.laod  # noqa: B018


@pytest.mark.parametrize(("typed", "meant"), [("fitt", "fit"), ("genrate", "generate"), ("complete", "completion")])
def test_a_misspelt_command_is_answered_with_the_nearest(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([typed]) == 2
    assert f"did you mean '{meant}'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [(DataError("row 3 is empty", remedy="drop it"), 2, "drop it"), (LabError("it broke"), 1, "it broke"), (KeyboardInterrupt(), 130, "")],
)
def test_errors_become_a_few_lines_and_a_code(
    raised: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        raise raised

    monkeypatch.setattr(dispatch, "failing", fail, raising=False)
    monkeypatch.setitem(COMMANDS, "fail", Command("x", "x", "lmlab.cli.dispatch:failing"))
    monkeypatch.delenv("LMLAB_DEBUG", raising=False)
    assert main(["fail"]) == code
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
    if isinstance(raised, LabError):
        monkeypatch.setenv("LMLAB_DEBUG", "1")
        with pytest.raises(type(raised)):
            main(["fail"])
