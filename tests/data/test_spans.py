"""Span corruption: un-corrupting gives the text back, sizes come out full, documents stay apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.data.batch import Example
from lmlab.data.spans import SpanCollator, noise_mask, span_lengths
from lmlab.errors import ConfigError

EOS, PAD, FIRST_SENTINEL = 1, 0, 1_000_000


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
@given(length=st.integers(3, 300), density=st.floats(0.02, 0.97), mean=st.floats(1.0, 40.0), seed=st.integers(0, 2**40))
def test_putting_the_spans_back_gives_the_text(length: int, density: float, mean: float, seed: int) -> None:
    collate = collator(length, density, mean)
    one = example(collate.sizes.raw, position=seed % 1000)
    batch = collate([one], seed)
    inputs, targets = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    assert restore(inputs, targets) == one.input_ids.tolist()
    assert inputs[-1] == targets[-1] == EOS
    assert len(inputs) == collate.sizes.inputs == length
    assert len(targets) == collate.sizes.targets
    sentinels = [t for t in inputs if t >= FIRST_SENTINEL]
    assert sentinels == [t for t in targets if t >= FIRST_SENTINEL] == list(range(FIRST_SENTINEL, FIRST_SENTINEL + collate.sizes.spans))
    assert batch["decoder_input_ids"][0].tolist() == [PAD, *targets[:-1]]
    assert batch["counts"]["span_corruption"].item() == len(targets)


def test_t5s_own_sizes() -> None:
    sizes = span_lengths(512, 0.15, 3.0)
    assert (sizes.raw, sizes.inputs, sizes.targets) == (568, 512, 114)  # the lengths T5's published configs state


@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.05, 3.0), (0.5, 3.0), (0.5, 32.0), (0.6, 1.0), (0.9, 20.0), (0.95, 64.0)])
def test_every_input_comes_out_full_with_the_share_and_the_spans_asked_for(density: float, mean: float) -> None:
    for length in range(3, 400):
        sizes = span_lengths(length, density, mean)
        assert sizes.inputs == length == sizes.raw - sizes.noise + sizes.spans + 1
        assert sizes.targets == sizes.noise + sizes.spans + 1
        assert abs(sizes.noise - density * sizes.raw) <= max(0.5, 1 - density * sizes.raw) + 1e-9
        wanted = min(max(1, round(sizes.noise / mean)), sizes.raw - sizes.noise)
        assert wanted - 1 <= sizes.spans <= wanted
        # brute force: among texts whose input comes out full without taking a span away, none is longer
        if sizes.spans == wanted:
            noise = min(max(round((sizes.raw + 1) * density), 1), sizes.raw)
            assert sizes.raw + 1 - noise + min(max(round(noise / mean), 1), sizes.raw + 1 - noise) + 1 > length


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
        for token, owner in zip(batch["input_ids"][row].tolist(), batch["document_ids"][row].tolist(), strict=True):
            assert token not in document or owner == document[token]
        owners, previous = batch["decoder_document_ids"][row], batch["decoder_input_ids"][row]
        changes = torch.nonzero(owners.diff() != 0).squeeze(1) + 1
        assert len(changes) == len(owners.unique()) - 1 > 0
        assert (previous[changes] == PAD).all(), "the decoder starts anew with each document"


@pytest.mark.parametrize("longest", [1, 2, 3, 5, 10])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 4.0)])
def test_nothing_is_asked_of_a_document_without_a_sentinel_that_the_encoder_sees(longest: int, density: float, mean: float) -> None:
    collate = collator(64, density, mean)
    generator = np.random.default_rng(longest)
    examples = []
    for n in range(50):
        documents = np.repeat(np.arange(collate.sizes.raw), generator.integers(1, longest + 1, collate.sizes.raw))[: collate.sizes.raw]
        examples.append(example(collate.sizes.raw, n)._replace(document_ids=documents))
    batch = collate(examples, 0)
    sources, targets = batch["document_ids"].tolist(), batch["decoder_document_ids"].tolist()
    for row, one in enumerate(examples):
        document = dict(zip(one.input_ids.tolist(), one.document_ids.tolist(), strict=True))
        inputs, labels = batch["input_ids"][row].tolist(), batch["labels"][row].tolist()
        sentinels = {token: owner for token, owner in zip(inputs, sources[row], strict=True) if token >= FIRST_SENTINEL}
        current = -1
        for token, owner in zip(labels, targets[row], strict=True):
            current = token if token >= FIRST_SENTINEL else current
            assert owner == sentinels[current], "a token belongs to the document of its sentinel, and the encoder sees that one there"
        for token, following in itertools.pairwise(labels):
            if token >= FIRST_SENTINEL:  # which is the document that the span begins in
                assert sentinels[token] == document[following]
        assert sources[row] == sorted(sources[row]) and targets[row] == sorted(targets[row])
        starts = [i for i in range(len(labels)) if i == 0 or targets[row][i] != targets[row][i - 1]]
        assert all(batch["decoder_input_ids"][row, i] == PAD and labels[i] >= FIRST_SENTINEL for i in starts)


def test_the_same_in_any_company_and_new_in_each_epoch() -> None:
    collate = collator(64)
    examples = [example(collate.sizes.raw, n) for n in range(4)]
    together = collate(examples, 3)
    assert torch.equal(collate([examples[2]], 3)["labels"][0], together["labels"][2])
    assert not torch.equal(together["labels"][0], together["labels"][1])


def test_an_impossible_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="no span fits"):
        span_lengths(2, 0.15, 3.0)
