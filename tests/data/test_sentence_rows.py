"""Rows of texts to compare: layout, word repetition, cutting; and the view that leaves short sentences out."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest

from lmlab.data.batch import Batch, Example
from lmlab.data.masking import MaskingConfig, MLMCollator
from lmlab.data.sentence_rows import SentenceRows, chunk, repeat_tokens
from lmlab.data.views import make_view
from lmlab.data.views.sentences import SentenceView
from lmlab.errors import ConfigError, DataError
from tests.data.memory import MemoryStore, feed

CLS, SEP, PAD, MASK = 1, 2, 0, 3
MASKING = MLMCollator(MaskingConfig(), 0.3, MASK, PAD, 100, (PAD, CLS, SEP, MASK))


def collator(positives: Any, masking: MLMCollator | None = None, hard_negatives: Any = "none", length: int = 12) -> SentenceRows:
    return SentenceRows(positives, hard_negatives, length, (CLS,), (SEP,), PAD, 0.32, masking)


def example(text: list[int], second: list[int] | None = None, position: int = 0, index: int = 0, **extra: Any) -> Example:
    ids = [CLS, *text, SEP, *((*second, SEP) if second else ())]
    if second:
        extra["second_start"] = len(text) + 2
    return Example(position, index, np.array(ids), np.zeros(len(ids), np.int64), len(text) + len(second or []), None, extra)


def rows(batch: Batch) -> list[list[int]]:
    masks = batch.get("attention_mask", batch["input_ids"] != -1)
    return [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], masks, strict=True)]


def test_a_text_is_read_twice_and_counted_once() -> None:
    batch = collator("dropout")([example([5, 6, 7]), example([8, 9])], seed=0)
    assert rows(batch) == [[CLS, 5, 6, 7, SEP], [CLS, 5, 6, 7, SEP], [CLS, 8, 9, SEP], [CLS, 8, 9, SEP]]
    assert batch["tokens"].tolist() == [5] and batch["counts"]["contrastive"].tolist() == [2]
    assert batch["texts"][0, 0] == batch["texts"][0, 1] != batch["texts"][1, 0]


def test_a_pair_becomes_two_rows_that_are_cut_but_end_well() -> None:
    batch = collator("neighbours", length=5)([example([5, 6, 7, 8], [9])], seed=0)
    assert rows(batch) == [[CLS, 5, 6, 7, SEP], [CLS, 9, SEP]]
    assert batch["tokens"].tolist() == [4], "what was cut is not read"


def test_labelled_texts_come_in_order() -> None:
    given = {"positive_ids": [20, 21], "negative_ids": np.array([30])}
    batch = collator("labelled", hard_negatives="labelled")([example([5], **given)], seed=0)
    assert rows(batch) == [[CLS, 5, SEP], [CLS, 20, 21, SEP], [CLS, 30, SEP]]
    assert batch["tokens"].tolist() == [4] and batch["texts"].shape == (1, 3)
    with pytest.raises(DataError, match="no negative_ids"):
        collator("labelled", hard_negatives="labelled")([example([5], positive_ids=[4])], seed=0)
    with pytest.raises(DataError, match=r"no positive_ids(.|\n)*tuples are too short"):
        collator("labelled")([example([5])], seed=0)


def test_repetition_is_what_the_paper_says() -> None:
    """Up to max(2, 0.32 N) tokens, any number of them alike often, any place alike often; order is kept."""
    text, generator = np.arange(50), np.random.default_rng(0)
    added, places = [], np.zeros(50)
    for _ in range(4000):
        repeated = repeat_tokens(text, 0.32, generator)
        found, times = np.unique(repeated, return_counts=True)
        assert (found == text).all() and set(times) <= {1, 2} and (np.diff(repeated) >= 0).all()
        added.append(len(repeated) - 50)
        places += times - 1
    assert set(added) == set(range(17)) and abs(np.mean(added) - 8) < 4 * np.std(added) / 4000**0.5
    assert np.bincount(added).min() > 4000 / 17 * 0.75
    assert np.abs(places / 4000 - 8 / 50).max() < 0.03
    assert {len(repeat_tokens(np.arange(3), 0.32, generator)) for _ in range(50)} == {3, 4, 5}
    assert len(repeat_tokens(np.arange(1), 0.32, generator)) <= 2


def test_repetition_depends_on_seed_position_and_index_alone() -> None:
    collate, text = collator("word_repetition", length=64), list(range(5, 35))
    alone = rows(collate([example(text, position=7, index=3)], seed=1))[1]
    among = rows(collate([example(text, position=6, index=9), example(text, position=7, index=3)], seed=1))
    assert among[3] == alone and among[2] == among[0] == [CLS, *text, SEP]
    others = [rows(collate([example(text, position=p, index=i)], seed=s))[1] for p, i, s in ((8, 3, 1), (7, 4, 1), (7, 3, 2))]
    assert alone not in others


def test_a_repeated_text_is_not_longer_than_a_row() -> None:
    batch = collator("word_repetition")([example(list(range(5, 15)), position=p) for p in range(20)], seed=0)
    assert all(len(row) <= 12 and row[0] == CLS and row[-1] == SEP for row in rows(batch))
    assert (batch["texts"][:, 0] == batch["texts"][:, 1]).all(), "it counts as the same text"


def test_masked_rows_hold_each_text_once_with_masks_of_its_own() -> None:
    same = list(range(10, 18))
    batch = collator("neighbours", MASKING)([example(same, same, position=4, index=2)], seed=0)
    masked = batch["mlm"]
    assert masked["input_ids"].shape == (2, 10) and batch["counts"]["mlm"] == masked["counts"]["mlm"] == len(masked["supervised"])
    assert batch["num_labelled"] == batch["counts"]["mlm"] > 0 == collator("dropout")([example(same)], seed=0)["num_labelled"]
    assert masked["labels"][0].tolist() != masked["labels"][1].tolist()
    assert collator("dropout", MASKING)([example(same)], seed=0)["mlm"]["input_ids"].shape == (1, 10)


def test_chunks_add_up_to_the_batch() -> None:
    texts = [list(range(5, 7 + 2 * n)) for n in range(5)]
    batch = collator("dropout", MASKING, length=16)([example(t, index=n) for n, t in enumerate(texts)], seed=0)
    parts = [chunk(batch, first, first + 2) for first in (0, 2, 4)]
    for key in ("input_ids", "attention_mask", "texts"):
        assert list(chain.from_iterable(part[key].tolist() for part in parts)) == batch[key].tolist()
    labels = [part["mlm"]["labels"].flatten()[part["mlm"]["supervised"]].tolist() for part in parts]
    assert list(chain.from_iterable(labels)) == batch["mlm"]["labels"].flatten()[batch["mlm"]["supervised"]].tolist()
    assert [int(part["mlm"]["counts"]["mlm"]) for part in parts] == list(map(len, labels))


def test_short_sentences_are_left_out(byte_tokenizer: Any) -> None:
    documents = [[[1], [2, 3, 4], [5, 6]], [[7, 8, 9, 10]], [[11], [12, 13, 14]]]
    store = MemoryStore(documents)
    view = SentenceView(store, feed("sentences", 5, prefix=(99,), suffix=(98,), min_tokens=3), byte_tokenizer)
    assert [view[i].input_ids.tolist() for i in range(len(view))] == [[99, 2, 3, 4, 98], [99, 7, 8, 9, 98], [99, 12, 13, 14, 98]]
    assert [view[i].index for i in range(3)] == [0, 1, 2] and view.num_raw_tokens == 9
    whole = SentenceView(store, feed("sentences", 5, prefix=(99,), suffix=(98,)), byte_tokenizer)
    assert len(whole) == 6 and whole.num_raw_tokens == 13
    with pytest.raises(DataError, match=r"none of its 6 sentences has 9 tokens(.|\n)*lower min_tokens"):
        SentenceView(store, feed("sentences", 5, min_tokens=9), byte_tokenizer)
    store.check_tokenizer = lambda fingerprint: None  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="min_tokens has no effect"):
        make_view(store, feed("blocks", 5, min_tokens=3), byte_tokenizer)
