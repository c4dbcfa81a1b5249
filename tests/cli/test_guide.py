"""The short help names only what there is, and comes at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lmlab.cli import main
from lmlab.cli.guide import COMMANDS, GROUPS, guide
from lmlab.cli.parser import StrictParser

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_short_and_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: lmlab {command}")
    assert len(printed.splitlines()) <= 50
    assert "--print_config" in printed
    assert "--help all" in printed


def test_the_guide_starts_no_torch() -> None:
    code = "import sys; from lmlab.cli import main; main(['fit', '-h']); print({'torch', 'lightning'} & set(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"


def test_settings_it_names_are_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """Asked of the full help: of the sections by the parser, of `model` and `data` by the classes' own help."""
    assert main(["fit", "--help", "all"]) == 0
    printed = capsys.readouterr().out
    for name, (_, keys) in GROUPS.items():
        if name in ("model", "data"):
            base = {"model": "lmlab.objectives.mlm.MLM", "data": "lmlab.data.module.CorpusModule"}[name]
            assert main(["fit", f"--{name}.help={base}"]) == 0
            shown = capsys.readouterr().out
            missing = [key for key in keys if f"--{name}.init_args.{key.partition('.')[2]}" not in shown and f"--{key}" not in shown]
        else:
            missing = [key for key in keys if f"--{key}" not in printed]
        assert missing == []
    assert not StrictParser().allow_abbrev


@pytest.mark.parametrize("command", COMMANDS)
def test_shipped_configs_in_examples_exist(command: str) -> None:
    words = [word for word in guide(command).split() if word.startswith("configs/") and word.endswith(".yaml")]
    assert [word for word in words if not (ROOT / word).is_file()] == []
