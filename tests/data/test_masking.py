"""Masking: exact counts, specials untouched, whole words, frozen evaluation, and a pure function of (seed, position, index)."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.data.batch import IGNORE_INDEX, Example
from lmlab.data.masking import MaskingConfig, MLMCollator
from lmlab.errors import ConfigError

SPECIALS, PAD, MASK, VOCAB = (0, 1, 2, 3), 0, 3, 50


def example(length: int, position: int = 0, index: int = 0, words: bool = False) -> Example:
    generator = np.random.default_rng(index)
    ids = generator.integers(4, VOCAB, length)
    ids[0], ids[-1] = 1, 2
    starts = generator.random(length) < 0.6
    return Example(position, index, ids, np.zeros(length, np.int64), length - 2, starts if words else None)


def collator(prob: float = 0.15, **config: object) -> MLMCollator:
    return MLMCollator(MaskingConfig(**config), prob, MASK, PAD, VOCAB, SPECIALS)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(length=st.integers(4, 200), prob=st.floats(0.01, 0.9), seed=st.integers(0, 2**40), position=st.integers(0, 2**40))
def test_counts_are_exact_and_labels_restore_the_text(length: int, prob: float, seed: int, position: int) -> None:
    examples = [example(length, position + i, i) for i in range(3)]
    batch = collator(prob)(examples, seed)
    labels, corrupted = batch["labels"].numpy(), batch["input_ids"].numpy()
    for row, original in enumerate(examples):
        chosen = labels[row] != IGNORE_INDEX
        assert chosen.sum() == min(length - 2, max(1, round(prob * length)))
        assert not np.isin(original.input_ids[chosen], SPECIALS).any()
        assert (np.where(chosen, labels[row], corrupted[row]) == original.input_ids).all()
        assert not np.isin(corrupted[row][chosen], (0, 1, 2)).any(), "only the mask token and ordinary tokens are written"
    assert batch["counts"]["mlm"].item() == (labels != IGNORE_INDEX).sum() == len(batch["supervised"])
    assert (batch["labels"].flatten()[batch["supervised"]] != IGNORE_INDEX).all()
    assert batch["tokens"].item() == 3 * (length - 2)


def test_the_same_seed_position_and_index_give_the_same_masks_in_any_company() -> None:
    examples = [example(64, n, n) for n in range(6)]
    together = collator()(examples, 7)
    for row, one in enumerate(examples):
        alone = collator()([one], 7)
        assert torch.equal(alone["input_ids"][0], together["input_ids"][row])
    assert not torch.equal(collator()(examples, 8)["labels"], together["labels"])
    moved = [e._replace(position=e.position + 6) for e in examples]
    assert not torch.equal(collator()(moved, 7)["labels"], together["labels"]), "masks change from epoch to epoch"


def test_eighty_ten_ten() -> None:
    batch = collator(0.5)([example(400, n, n) for n in range(100)], 0)
    original = torch.stack([torch.from_numpy(example(400, n, n).input_ids) for n in range(100)])
    chosen = batch["labels"] != IGNORE_INDEX
    total = chosen.sum().item()
    masked = (batch["input_ids"][chosen] == MASK).sum().item() / total
    kept = (batch["input_ids"][chosen] == original[chosen]).sum().item() / total
    deviation = 5 * (0.25 / total) ** 0.5  # five standard errors of a share
    assert abs(masked - 0.8) < deviation
    assert abs(kept - (0.1 + 0.1 / (VOCAB - len(SPECIALS)))) < deviation


@settings(max_examples=60, deadline=None)
@given(length=st.integers(8, 120), prob=st.floats(0.05, 0.6), seed=st.integers(0, 2**30))
def test_whole_words_are_masked_whole(length: int, prob: float, seed: int) -> None:
    one = example(length, 0, seed, words=True)
    chosen = collator(prob, unit="word")([one], seed)["labels"][0].numpy() != IGNORE_INDEX
    words, current = [], -1  # brute force: a word runs from a start to the next start or special token
    for i, token in enumerate(one.input_ids):
        if token in SPECIALS:
            current = -1
            words.append(-1)
            continue
        if current < 0 or one.word_starts[i]:  # type: ignore[index]
            current = i
        words.append(current)
    for word in set(words) - {-1}:
        members = np.asarray(words) == word
        assert chosen[members].all() or not chosen[members].any()
    target = min(length - 2, max(1, round(prob * length)))
    longest = max(words.count(w) for w in set(words) - {-1})
    assert 1 <= chosen.sum() <= max(target, longest)
    assert chosen.sum() > target - longest


@pytest.mark.parametrize("unit", ["token", "word"])
def test_an_example_of_special_tokens_only_is_left_alone(unit: str) -> None:
    nothing = Example(0, 0, np.array([2, 1, 2, 1]), np.array([0, 1, 1, 2]), 0, np.ones(4, bool))
    batch = collator(unit=unit)([nothing, example(4, 1, 1, words=True)], 0)
    assert batch["input_ids"][0].tolist() == [2, 1, 2, 1]
    assert (batch["labels"][0] == IGNORE_INDEX).all()
    assert batch["counts"]["mlm"].item() == 1


def test_the_rate_follows_its_schedule_over_position() -> None:
    config = MaskingConfig(final_prob=0.1, final_at_examples=1000)
    assert [config.prob(0.3, n) for n in (0, 500, 1000, 5000)] == pytest.approx([0.3, 0.2, 0.1, 0.1])
    masked = [MLMCollator(config, 0.3, MASK, PAD, VOCAB, SPECIALS)([example(100, n, 0)], 0)["counts"]["mlm"].item() for n in (0, 500, 1000)]
    assert masked == [30, 20, 10]


def test_it_survives_pickling_and_refuses_impossible_settings() -> None:
    one = collator(0.2)
    assert pickle.loads(pickle.dumps(one)) == one
    assert dataclasses.replace(one, prob=0.3).prob == 0.3
    for bad in ({"unit": "words"}, {"chinese": "jieba"}, {"mask_share": 0.95}, {"final_prob": 0.1}, {"eval_prob": 0.0}):
        with pytest.raises(ConfigError):
            MaskingConfig(**bad)  # type: ignore[arg-type]
