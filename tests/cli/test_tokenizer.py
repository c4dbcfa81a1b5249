"""`lmlab tokenizer`: what it writes and prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmlab.cli.tokenizer import main
from lmlab.errors import ConfigError, DataError
from lmlab.tokenizer import Tokenizer


def test_train_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "corpus.txt").write_text("the cat sat on the mat\n\nthe dog sat on the log\n\n刘备曰：好\n" * 5, encoding="utf-8")
    out = tmp_path / "made"
    arguments = [
        "train",
        str(tmp_path / "corpus.txt"),
        "--out",
        str(out),
        "--vocab-size",
        "280",
        "--num-sentinels",
        "2",
        "--text",
        "the cat",
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    tokenizer = Tokenizer.load(out)
    assert tokenizer.fingerprint in printed
    assert "280 tokens, 9 of them special (2 sentinels)" in " ".join(printed.split())
    assert main(["show", str(out), "--text", "the cat 龘"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    num_tokens = len(tokenizer.encode("the cat 龘"))
    assert f"{11 / num_tokens:.2f} bytes a token (11 bytes, {num_tokens} tokens)" in shown
    assert f"| the={tokenizer.id('the')}" in shown
    assert "[MASK]=6" in shown


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no tokenizer"):
        main(["show", str(tmp_path / "nowhere")])
    with pytest.raises(ConfigError, match="vocab_size"):
        main(["train", "austen", "--out", str(tmp_path), "--vocab-size", "10"])
    with pytest.raises(SystemExit):
        main(["train", "austen", "--out", str(tmp_path), "--vocab", "1000"])
