"""Span corruption: un-corrupting gives the text back, sizes come out full, documents stay apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.data.batch import Example
from lmlab.data.spans import SpanCollator, noise_mask, span_lengths
from lmlab.errors import ConfigError

EOS, PAD, FIRST_SENTINEL = 1, 0, 1000


def collator(length: int, density: float = 0.15, mean: float = 3.0) -> SpanCollator:
    sizes = span_lengths(length, density, mean)
    return SpanCollator(sizes, tuple(range(FIRST_SENTINEL, FIRST_SENTINEL + sizes.spans)), EOS, PAD)


def example(size: int, position: int = 0, documents: int = 1) -> Example:
    ids = np.arange(2, size + 2)
    return Example(position, position, ids, np.sort(np.arange(size) % documents), size)


def restore(inputs: list[int], targets: list[int]) -> list[int]:
    """Puts the spans of a target back where their sentinels stand in the input, by plain lists."""
    spans: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token >= FIRST_SENTINEL:
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    return [t for token in inputs[:-1] for t in (spans[token] if token >= FIRST_SENTINEL else [token])]


@settings(max_examples=80, deadline=None)
@given(length=st.integers(8, 300), density=st.floats(0.05, 0.6), mean=st.floats(1.0, 8.0), seed=st.integers(0, 2**40))
def test_putting_the_spans_back_gives_the_text(length: int, density: float, mean: float, seed: int) -> None:
    collate = collator(length, density, mean)
    one = example(collate.sizes.raw, position=seed % 1000)
    batch = collate([one], seed)
    inputs, targets = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    assert restore(inputs, targets) == one.input_ids.tolist()
    assert inputs[-1] == targets[-1] == EOS
    assert len(inputs) == collate.sizes.inputs <= length
    assert len(targets) == collate.sizes.targets
    sentinels = [t for t in inputs if t >= FIRST_SENTINEL]
    assert sentinels == [t for t in targets if t >= FIRST_SENTINEL] == list(range(FIRST_SENTINEL, FIRST_SENTINEL + collate.sizes.spans))
    assert batch["decoder_input_ids"][0].tolist() == [PAD, *targets[:-1]]
    assert batch["counts"]["span_corruption"].item() == len(targets)


def test_t5s_own_sizes() -> None:
    sizes = span_lengths(512, 0.15, 3.0)
    assert (sizes.raw, sizes.inputs, sizes.targets) == (568, 512, 114)  # the lengths T5's published configs state


@settings(max_examples=50, deadline=None)
@given(length=st.integers(8, 200), seed=st.integers(0, 2**30))
def test_noise_masks_have_exact_counts(length: int, seed: int) -> None:
    sizes = span_lengths(length, 0.3, 2.0)
    mask = noise_mask(sizes, np.random.default_rng(seed))
    assert len(mask) == sizes.raw and mask.sum() == sizes.noise and not mask[0]
    assert (np.diff(mask.astype(int)) == 1).sum() == sizes.spans


def test_every_place_is_dropped_equally_often() -> None:
    sizes = span_lengths(60, 0.3, 2.0)
    generator = np.random.default_rng(0)
    share = np.mean([noise_mask(sizes, generator) for _ in range(4000)], axis=0)
    inner = share[5:-5]  # the first token is never dropped and the last always: the ends are not uniform, by construction
    assert np.abs(inner - inner.mean()).max() < 5 * (0.25 / 4000) ** 0.5 + 0.02


def test_documents_stay_apart_on_both_sides() -> None:
    collate = collator(64, 0.4, 2.0)  # many spans: every document loses some
    one = example(collate.sizes.raw, documents=3)
    batch = collate([one, one._replace(position=9)], 5)
    document = dict(zip(one.input_ids.tolist(), one.document_ids.tolist(), strict=True))
    for row in range(2):
        for key, ids in (("document_ids", "input_ids"), ("decoder_document_ids", "labels")):
            for token, owner in zip(batch[ids][row].tolist(), batch[key][row].tolist(), strict=True):
                if token in document and token != EOS:
                    assert owner == document[token]
        owners, previous = batch["decoder_document_ids"][row], batch["decoder_input_ids"][row]
        changes = torch.nonzero(owners.diff() != 0).squeeze(1) + 1
        assert len(changes) == len(owners.unique()) - 1 > 0
        assert (previous[changes] == PAD).all(), "the decoder starts anew with each document"


def test_the_same_in_any_company_and_new_in_each_epoch() -> None:
    collate = collator(64)
    examples = [example(collate.sizes.raw, n) for n in range(4)]
    together = collate(examples, 3)
    assert torch.equal(collate([examples[2]], 3)["labels"][0], together["labels"][2])
    assert not torch.equal(together["labels"][0], together["labels"][1])


def test_an_impossible_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="no span fits"):
        span_lengths(2, 0.15, 3.0)
