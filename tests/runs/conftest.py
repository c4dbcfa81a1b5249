"""A small corpus, its tokenizer, and a way to start runs on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from lmlab.data.corpus import open_corpus
from lmlab.data.sentences import sentence_starts
from lmlab.tokenizer import Tokenizer, TokenizerConfig

SCRIPT = Path(__file__).with_name("one_run.py")
REPOSITORY = Path(__file__).parents[2]


class Place(NamedTuple):
    """Where the runs of a test find their text and leave their results."""

    folder: Path
    corpus: Path
    tokenizer: Path

    def settings(self, label: str, **given: Any) -> dict[str, Any]:
        return {
            "corpus": str(self.corpus),
            "tokenizer": str(self.tokenizer),
            "cache": str(self.folder / "cache"),
            "root": str(self.folder / "runs"),
            "out": str(self.folder / f"{label}.pt"),
            "diary": str(self.folder / f"{label}.jsonl"),
            **given,
        }

    def result(self, name: str) -> dict[str, Any]:
        return torch.load(self.folder / f"{name}.pt", weights_only=True)

    def diary(self, name: str) -> dict[tuple[int, int], dict[str, Any]]:
        lines = [json.loads(line) for line in (self.folder / f"{name}.jsonl").read_text().splitlines()]
        return {tuple(line["key"]): line for line in lines}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Some short documents: an epoch is a few dozen examples, so that runs cross epochs."""
    folder = tmp_path_factory.mktemp("runs")
    text = next(iter(open_corpus("austen").documents())).text
    paragraphs = [p[:240] for p in text.splitlines() if len(sentence_starts(p[:240])) > 1][:18]
    corpus = folder / "text.txt"
    corpus.write_text("\n\n".join(paragraphs), encoding="utf-8")
    tokenizer = folder / "tokenizer.json"
    Tokenizer.train(paragraphs, TokenizerConfig(vocab_size=400, num_sentinels=8)).save(tokenizer)
    return Place(folder, corpus, tokenizer)


def start(settings: dict[str, Any], launcher: tuple[str, ...] = (), check: Callable[[int], bool] = lambda code: code == 0) -> str:
    """Runs the script in a process of its own and returns what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *launcher, str(SCRIPT), json.dumps(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert check(done.returncode), f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr
