"""Texts that go together: from the fields of JSON lines to the rows of a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lmlab
from lmlab.budget import BudgetConfig
from lmlab.data.corpus import EmbeddedCorpus, MixtureCorpus, TextCorpus, TupleCorpus, open_corpus
from lmlab.data.module import CorpusModule
from lmlab.data.store import build_store
from lmlab.data.views import TupleView
from lmlab.errors import ConfigError, DataError
from lmlab.objectives.contrast_config import ContrastConfig
from lmlab.run.record import Record
from lmlab.session import RunConfig
from lmlab.tokenizer import Tokenizer
from tests.data.memory import MemoryStore, feed
from tests.objectives.sentence_toy import contrastive
from tests.objectives.toy import tokenizer

FIELDS = ("text", "positive", "negative")


def rows(num: int) -> list[dict[str, str]]:
    return [{"text": f"Text {n}. It goes on.", "positive": f"Other words {n}", "negative": f"Nothing\nof {n} at all"} for n in range(num)]


def write(path: Path, content: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in content), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("kind", ["byte_tokenizer", "bpe_tokenizer", "wordpiece_tokenizer"])
def test_each_text_is_encoded_alone(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tok: Tokenizer = request.getfixturevalue(kind)
    corpus = TupleCorpus(paths=(write(tmp_path / "t.jsonl", rows(30)),), fields=FIELDS)
    stores = build_store(corpus, tok, cache_dir=tmp_path).values()
    wanted = feed("tuples", 50, prefix=(tok.cls_id,), suffix=(tok.sep_id,), num_texts=3)
    views = [TupleView(store, wanted, tok) for store in stores if store.header.num_documents]
    expected = [[tok.encode(row[field].replace("\n", " ")) for field in FIELDS] for row in rows(30)]
    found = []
    for view, index in [(each, i) for each in views for i in range(len(each))]:
        example = view.draw(index, index + 7, 0)
        assert example.extra is not None and (example.position, example.index) == (index + 7, index)
        assert (example.input_ids[0], example.input_ids[-1]) == (tok.cls_id, tok.sep_id)
        found.append([example.input_ids[1:-1].tolist(), *(example.extra[key].tolist() for key in ("positive_ids", "negative_ids"))])
        assert example.num_raw_tokens == sum(map(len, found[-1]))
    assert sorted(found) == sorted(expected)
    assert sum(view.num_raw_tokens for view in views) == sum(len(text) for texts in found for text in texts)


def test_other_documents_of_a_mixture_stay_what_they_are(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    (tmp_path / "x.txt").write_text("One line. Two sentences.\nAnother line.\n", encoding="utf-8")
    plain, pairs = TextCorpus(paths=(str(tmp_path / "x.txt"),)), TupleCorpus(paths=(write(tmp_path / "t.jsonl", rows(1)),))
    found = {}
    for name, corpus in (("plain", plain), ("pairs", pairs), ("both", MixtureCorpus(parts={"plain": plain, "pairs": pairs}))):
        stores = build_store(corpus, byte_tokenizer, cache_dir=tmp_path).values()
        found[name] = (sum(s.header.num_documents for s in stores), sum(len(s.sentences) for s in stores))
    assert found == {"plain": (1, 3), "pairs": (1, 2), "both": (2, 5)}


def test_what_is_no_tuple_is_refused(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    for documents, said in (([[[5]], [[6], [7]]], "document 0 has 1"), ([[[5], [6]], [[7], [8], [9]]], "document 1 has 3")):
        with pytest.raises(DataError, match=said):
            TupleView(MemoryStore(documents), feed("tuples", 9), byte_tokenizer)
    with pytest.raises(DataError, match="has no documents"):
        TupleView(MemoryStore([]), feed("tuples", 9), byte_tokenizer)
    with pytest.raises(DataError, match=r"2 texts, and 3 are to be compared[\s\S]*third field"):
        TupleView(MemoryStore([[[5], [6]]]), feed("tuples", 9, num_texts=3), byte_tokenizer)
    with pytest.raises(DataError, match="field 'positive' is empty") as caught:
        list(TupleCorpus(paths=(write(tmp_path / "e.jsonl", [*rows(2), {"text": "a", "positive": " \n"}]),)).documents())
    assert caught.value.where is not None and caught.value.where.endswith("e.jsonl:3")
    for fields, said in ((("text",), "two or three"), (("a", "a"), "each field once"), (("a", ""), "each field once")):
        with pytest.raises(ConfigError, match=said):
            TupleCorpus(paths=("x.jsonl",), fields=fields)


def test_fields_and_their_order_decide_the_text(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", rows(2))
    one, other = TupleCorpus(paths=(path,)), TupleCorpus(paths=(path,), fields=("positive", "text"))
    assert [document.text for document in one.documents()] == [f"Text {n}. It goes on.\nOther words {n}" for n in range(2)]
    assert one.fingerprint() != other.fingerprint()
    assert open_corpus({"class_path": "TupleCorpus", "init_args": {"paths": [path], "fields": list(FIELDS)}}).describe()["fields"]


def test_the_handbook_has_translations_and_what_stands_beside_them() -> None:
    found = [document.text.split("\n") for document in EmbeddedCorpus(name="handbook").documents()]
    assert len(found) == 2719 and {len(texts) for texts in found} == {3}
    assert found[0][:2] == ["The Debian Administrator's Handbook", "Debian 管理员手册"]
    translations = [texts[1] for texts in found]
    assert all(texts[2] in translations[max(0, n - 2) : n + 3] and texts[2] != texts[1] for n, texts in enumerate(found))


def test_a_run_learns_what_belongs_together(tmp_path: Path) -> None:
    """Texts share no word with what belongs to them; only training can tell."""
    names = ["ape", "bee", "cat", "dog", "elk", "fox", "gnu", "hen"]
    pairs = [{"text": f"{a} {b} {n}", "positive": f"{b[::-1]} {a[::-1]}"} for n in range(8) for a in names for b in names]
    made = contrastive(tokenizer(), positives="labelled", pooling="mean", mlp="none")
    corpus = TupleCorpus(paths=(write(tmp_path / "t.jsonl", pairs),))
    data = CorpusModule(corpus, made.tokenizer, made.feed(), global_batch_size=32, cache_dir=str(tmp_path), eval_examples=None)
    run = lmlab.fit(made, data, BudgetConfig(steps=60), RunConfig(name="t", root=str(tmp_path)), trainer={"enable_progress_bar": False})
    assert Record.load(run.record_path).metrics["val/retrieval_accuracy"] > 0.5
    assert ContrastConfig(positives="labelled").fewest_tokens == 1
