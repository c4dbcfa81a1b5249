"""Half-to-half retrieval: ranks by brute force, and where the passages come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab.data.module import CorpusModule
from lmlab.errors import DataError
from lmlab.objectives.mlm import MLM
from lmlab.rulers.retrieval import Halves, find_other_halves, halves
from tests.objectives.toy import objective, tokenizer

TOK = tokenizer()


def test_ranks_are_those_of_a_loop() -> None:
    torch.manual_seed(0)
    vectors = {text: F.normalize(torch.randn(5), dim=0) for text in "abcdefghij"}
    passages = [Halves(a, b) for a, b in zip("abcde", "fghij", strict=True)]

    def embed(texts: Sequence[str]) -> Tensor:
        return torch.stack([vectors[text] for text in texts])

    ranks = []
    for asked, others in (("first", "second"), ("second", "first")):
        for passage in passages:
            query = vectors[getattr(passage, asked)]
            order = sorted(passages, key=lambda p: -float(query @ vectors[getattr(p, others)]))
            ranks.append(order.index(passage) + 1)
    found = find_other_halves(passages, embed)
    assert found.accuracy == pytest.approx(sum(r == 1 for r in ranks) / 10)
    assert found.reciprocal_rank == pytest.approx(sum(1 / r for r in ranks) / 10) and found.num_passages == 5


def test_vectors_that_say_nothing_find_nothing() -> None:
    passages = [Halves(str(n), str(-n)) for n in range(1, 6)]
    found = find_other_halves(passages, lambda texts: torch.ones(len(texts), 4) / 2)
    assert found.accuracy == 0 and found.reciprocal_rank == pytest.approx(1 / 3), "all are in the middle"
    with pytest.raises(DataError, match="two passages"):
        find_other_halves(passages[:1], lambda texts: torch.ones(len(texts), 4))


def test_passages_are_halves_of_the_held_out_text(tmp_path: Path) -> None:
    corpus = tmp_path / "text.txt"
    texts = [f"The fox number {n} jumps. The dog sleeps on. The quick fox runs away. The wood {n} is dark." for n in range(30)]
    corpus.write_text("\n\n".join(texts), encoding="utf-8")
    made = objective("mlm", TOK)
    assert isinstance(made, MLM)
    data = CorpusModule(corpus, TOK, made.feed(), cache_dir=str(tmp_path / "cache"))
    data.prepare_data()
    found = halves(data, "val", length=1000)
    [text] = [t for t in texts if t.startswith(found[0].first.split(".")[0])]
    assert found[0].first + found[0].second == text and len(halves(data, "train", length=40, limit=7)) == 7
    assert min(len(part) for half in found for part in half) > 10
