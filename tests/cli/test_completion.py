"""Completion scripts hold every command, and the shells accept them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lmlab.cli.completion import SHELLS, main, options_of, script
from lmlab.cli.dispatch import COMMANDS


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_is_offered(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([shell]) == 0
    printed = capsys.readouterr().out
    assert [name for name in COMMANDS if name not in printed] == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_can_read_its_script(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n"], input=script(shell), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def complete(words: list[str], folder: Path) -> set[str]:
    """What bash offers for the last word."""
    quoted = " ".join(f"'{word}'" for word in words)
    ask = f'COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _lmlab 2>/dev/null; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", f"{script('bash')}\n{ask}"], cwd=folder, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_bash_offers_commands_options_and_files(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "more").mkdir()
    assert complete(["lmlab", "va"], tmp_path) == {"validate"}
    assert complete(["lmlab", "doctor", "--j"], tmp_path) == {"--json"}
    assert complete(["lmlab", "completion", "z"], tmp_path) == {"zsh"}
    assert complete(["lmlab", "fit", "-c", ""], tmp_path) == {"mine.yaml", "more/"}


def test_options_are_those_the_command_has(capsys: pytest.CaptureFixture[str]) -> None:
    from lmlab.cli import doctor

    with pytest.raises(SystemExit):
        doctor.main(["--help"])
    printed = capsys.readouterr().out
    assert [option for option in options_of("doctor") if option not in printed] == []
    assert "--json" in options_of("doctor")
    assert "-c" in options_of("fit")
