"""A tokenizer for a corpus: trained on what cleaning and mixing leave of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from lmlab.cli.tokenizer import main
from lmlab.data.corpus import JsonlCorpus, MixtureCorpus
from lmlab.data.tokenizer import tokenizer_for, training_texts
from lmlab.errors import DataError
from lmlab.tokenizer import TokenizerConfig


def rows(path: Path, texts: list[str]) -> JsonlCorpus:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return JsonlCorpus(paths=(str(path),))


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_an_empty_corpus_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(content)
    with pytest.raises(DataError, match="is empty") as caught:
        tokenizer_for(path)
    assert caught.value.where == str(path)
    with pytest.raises(DataError, match="is empty") as caught:
        main(["train", str(path), "--out", str(tmp_path / "out")])
    assert caught.value.where == str(path)
    assert not (tmp_path / "out").exists()
    mixture = MixtureCorpus(parts={"a": rows(tmp_path / "a.jsonl", [""]), "b": rows(tmp_path / "b.jsonl", [" "])})
    with pytest.raises(DataError, match="is empty") as caught:
        tokenizer_for(mixture, TokenizerConfig(vocab_size=400))
    assert caught.value.where == f"a: {tmp_path}/a.jsonl; b: {tmp_path}/b.jsonl"


def test_it_is_trained_on_the_shares_of_a_mixture(tmp_path: Path) -> None:
    parts = {"a": rows(tmp_path / "a.jsonl", ["a" * 40, ""]), "b": rows(tmp_path / "b.jsonl", [f"b{n}".ljust(20, "b") for n in range(50)])}
    sizes: Counter[str] = Counter()
    for text in training_texts(MixtureCorpus(parts=parts, weights={"a": 1, "b": 1})):
        sizes[text[0]] += len(text)
    assert sizes["b"] == 1000 and abs(sizes["a"] - 1000) <= 40
