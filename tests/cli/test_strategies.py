"""`lmlab strategies`: the table, printed and in the document."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmlab.cli import main
from lmlab.cli.strategies import BEGIN, END, markdown

DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"


def test_the_document_has_the_table_as_it_is() -> None:
    shown = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown == f"\n{markdown()}\n", "run `lmlab strategies --write docs/scaling.md`"


def test_it_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategies"]) == 0
    printed = capsys.readouterr().out
    assert "| Adafactor | yes | yes | no (" in printed
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")
    for _ in range(2):
        assert main(["strategies", "--write", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\n{printed}\n{END}after\n"


def test_a_file_without_its_place_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    assert main(["strategies", "--write", str(page)]) == 2
    assert BEGIN.strip() in capsys.readouterr().err and page.read_text() == "nothing\n"
