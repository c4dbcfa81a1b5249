"""The benchmarks compare like with like, and their table is whole."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

pytest.importorskip("transformers")

from benchmarks import pretraining
from benchmarks.peers import OBJECTIVES, Kind, lmlab_loss, pair, peer_batch
from benchmarks.sizes import Size
from benchmarks.timing import interleave, speedup
from lmlab.backbones.pretrained import Family, convert_state_dict
from lmlab.data.corpus import open_corpus
from lmlab.tokenizer import Tokenizer, TokenizerConfig

TINY = Size(hidden=16, layers=1, heads=2, vocab=300, length=16, batch=4)
FAMILIES: dict[Kind, Family] = {"mlm": "bert", "clm": "gpt2", "span_corruption": "t5"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    text = next(iter(open_corpus("austen").documents())).text
    paragraphs = [line for line in text.splitlines() if len(line) > 60][:120]
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")  # documents, so that there is something to hold out
    return str(path)


@pytest.fixture(scope="module")
def tokenizer(corpus: str) -> Tokenizer:
    return Tokenizer.train([Path(corpus).read_text(encoding="utf-8")], TokenizerConfig(vocab_size=TINY.vocab, num_sentinels=8))


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="transformers")
        yield


@pytest.mark.parametrize("kind", list(OBJECTIVES))
def test_both_sides_are_the_same_network(kind: Kind, corpus: str, tokenizer: Tokenizer) -> None:
    """As many weights, and with the same weights the same loss on the same batch."""
    sides = pair(kind, corpus, tokenizer, TINY)
    theirs, ours = sides.theirs.module, sides.ours.module
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    ours.load_state_dict(convert_state_dict(FAMILIES[kind], theirs.state_dict(), ours.backbone_config), strict=True)
    batch = sides.ours.batches[0]
    torch.testing.assert_close(lmlab_loss(ours, batch), theirs(**peer_batch(kind, batch)).loss, rtol=1e-4, atol=1e-5)


def test_the_table_is_whole(corpus: str, tokenizer: Tokenizer) -> None:
    """Three sides of each objective and two of the overhead; a bar wherever there is a claim."""
    rows = [row for kind in OBJECTIVES for row in pretraining.compare(kind, tokenizer, TINY, rounds=1, peak=1e9, corpus=corpus)]
    rows += pretraining.overhead(tokenizer, TINY, rounds=1, corpus=corpus)
    assert [row.what for row in rows] == [kind for kind in OBJECTIVES for _ in range(3)] + ["overhead"] * 2
    assert {row.what for row in rows if row.bar != "none"} == set(pretraining.BARS)
    assert all(row.tokens_per_second > 0 for row in rows)
    console = Console(width=140, file=StringIO())
    console.print(pretraining.table(rows))
    lines = console.file.getvalue().splitlines()[1:]
    assert [line.split()[0] for line in lines] == [row.what for row in rows]


def test_interleaving() -> None:
    """Turns alternate, the first call of each side is not timed, ratios are paired by round."""
    calls, ticks = [], iter(range(100))
    seconds = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, clock=lambda: float(next(ticks)))
    assert "".join(calls) == "ab" + "ab" + "ba"
    assert seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    assert speedup([4.0, 9.0, 2.0], [2.0, 3.0, 2.0]) == (2.0, 1.0, 3.0)
