"""Settings of the parser are the process's: what one test allows must not be allowed in the next."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MARKER = "it-ran"
EVIL = f"""\
from pathlib import Path

Path(__file__).with_name("{MARKER}").touch()


class Thing:
    pass
"""


@pytest.fixture(autouse=True)
def parser_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from jsonargparse import _common

    before = dict(_common.parsing_settings)
    monkeypatch.setattr(sys, "argv", ["lmlab"])
    monkeypatch.delenv("LMLAB_ALLOW", raising=False)
    yield
    _common.parsing_settings.clear()
    _common.parsing_settings.update(before)


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder holds `evilmod`, which makes this file when it is imported; so would any command that runs."""
    (tmp_path / "evilmod.py").write_text(EVIL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / MARKER
    sys.modules.pop("evilmod", None)
