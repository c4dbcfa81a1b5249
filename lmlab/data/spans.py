"""Span corruption: spans of the text are dropped from the input and asked for in the target."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from lmlab.data.batch import Batch, Example
from lmlab.data.order import rng
from lmlab.data.packing import document_keys
from lmlab.errors import ConfigError

SPANS = 3  # stream of randomness
_LEAST_LENGTH = 3  # a token, a sentinel, EOS


class SpanLengths(NamedTuple):
    """Sizes that make every example come out full, without padding.

    Args:
        raw: Tokens of text in one example.
        inputs: Tokens the encoder sees: kept tokens, one sentinel per span, EOS.
        targets: Tokens the decoder predicts: for each span its sentinel and its tokens, then EOS.
        noise: Tokens dropped.
        spans: Spans they form.
    """

    raw: int
    inputs: int
    targets: int
    noise: int
    spans: int


def span_lengths(length: int, noise_density: float, mean_span: float) -> SpanLengths:
    """The longest text whose corrupted input has exactly `length` tokens.

    Where no number of tokens gives that with spans of `mean_span` on average, there is one span fewer.

    Args:
        length: Encoder length, EOS included.
        noise_density: Share of tokens dropped.
        mean_span: Mean tokens per span.

    Raises:
        ConfigError: If not even one span fits.

    Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", sections
    3.1.4 and 3.3.4; the search for the length follows the description of `random_spans_helper` in its code.
    """
    if length < _LEAST_LENGTH:
        remedy = f"set a length of at least {_LEAST_LENGTH}"
        raise ConfigError(f"no span fits into an input of {length} tokens", where="length", remedy=remedy)
    # one token more of text is either kept or dropped, so the input never shrinks, and grows by two at most
    upper = int(length / (1 - noise_density)) + length  # more text than this leaves more than `length` tokens
    raw = bisect_right(range(upper), length, lo=2, key=lambda raw: _sizes(raw, noise_density, mean_span).inputs) - 1
    best, following = (_sizes(raw + more, noise_density, mean_span) for more in (0, 1))
    if best.inputs == length:
        return best
    # the input grew by two, of which one is a sentinel: with one span fewer it comes out full as well
    return following._replace(inputs=length, targets=following.targets - 1, spans=following.spans - 1)


def _sizes(raw: int, noise_density: float, mean_span: float) -> SpanLengths:
    noise = min(max(round(raw * noise_density), 1), raw - 1)
    spans = min(max(round(noise / mean_span), 1), raw - noise)
    return SpanLengths(raw, raw - noise + spans + 1, noise + spans + 1, noise, spans)


def noise_mask(sizes: SpanLengths, generator: np.random.Generator) -> np.ndarray:
    """Which tokens are dropped: (raw,) bool with exactly `noise` True in exactly `spans` runs; the first token is always kept.

    Both the lengths of the spans and those of the gaps are uniform over all ways to cut them.

    Args:
        sizes: From `span_lengths`.
        generator: Randomness of this example.
    """
    kept = _random_cut(sizes.raw - sizes.noise, sizes.spans, generator)
    dropped = _random_cut(sizes.noise, sizes.spans, generator)
    return np.repeat(np.tile([False, True], sizes.spans), np.stack([kept, dropped], axis=1).ravel())


def _random_cut(total: int, pieces: int, generator: np.random.Generator) -> np.ndarray:
    """Positive lengths that add up to `total`, uniform over all such lists."""
    cuts = np.sort(generator.choice(total - 1, pieces - 1, replace=False)) + 1 if pieces > 1 else np.empty(0, np.int64)
    return np.diff(np.concatenate([[0], cuts, [total]]).astype(np.int64))


@dataclass(frozen=True)
class SpanCollator:
    """Drops spans, chosen by (seed, position, index) alone.

    Documents stay apart on both sides: where the document changes within a row, the decoder starts anew with the start token. A
    span may begin in one document and end in a later one, or swallow a short one whole; cut there, it would need a further
    sentinel, and the sizes would not come out full. So in the target all its tokens belong to the document that it begins in, where
    its sentinel stands in the input: no token is asked for without a sentinel before it, or of a document the encoder does not see.
    With documents much longer than a span this is rare.

    Args:
        sizes: From `span_lengths`.
        sentinel_ids: Ids of the sentinels, first span first.
        eos_id: Ends input and target.
        start_id: What the decoder sees first.
    """

    sizes: SpanLengths
    sentinel_ids: tuple[int, ...]
    eos_id: int
    start_id: int

    def __call__(self, examples: Sequence[Example], seed: int) -> Batch:
        """Corrupts and stacks: `input_ids` (B, S), `decoder_input_ids` and `labels` (B, T)."""
        rows = [self.corrupt(e, rng(seed, SPANS, e.position, e.index)) for e in examples]
        inputs, input_documents, targets, target_documents = (np.stack(column) for column in zip(*rows, strict=True))
        previous = np.roll(targets, 1, axis=1)
        previous[:, 0] = self.start_id
        previous[:, 1:][np.diff(target_documents, axis=1) != 0] = self.start_id
        keys = document_keys(input_documents) | document_keys(target_documents, "decoder_")
        if keys:  # if one side tells documents apart, so must the other
            keys.setdefault("document_ids", torch.from_numpy(input_documents))
            keys.setdefault("decoder_document_ids", torch.from_numpy(target_documents))
        return {
            "input_ids": torch.from_numpy(inputs),
            "decoder_input_ids": torch.from_numpy(previous),
            "labels": torch.from_numpy(targets),
            "counts": {"span_corruption": torch.tensor([targets.size])},
            "tokens": torch.tensor([sum(e.num_raw_tokens for e in examples)]),
            **keys,
        }

    def corrupt(self, example: Example, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Input and target of one example, and the document of each of their tokens; all int64."""
        mask = noise_mask(self.sizes, generator)
        first = mask & ~np.concatenate([[False], mask[:-1]])
        sentinels = np.asarray(self.sentinel_ids)[: self.sizes.spans]
        ids, documents = example.input_ids, example.document_ids
        inputs = np.where(first, 0, ids)
        inputs[first] = sentinels
        keep = ~mask | first
        kept_documents = documents[keep]
        spots = np.flatnonzero(first)
        dropped = np.flatnonzero(mask)
        at = np.searchsorted(dropped, spots)
        targets = np.insert(ids[dropped], at, sentinels)
        # of each span, as long as its tokens and its sentinel; EOS goes with the last one on both sides
        target_documents = np.repeat(documents[spots], np.diff(np.append(at, len(dropped))) + 1)
        return (
            np.append(inputs[keep], self.eos_id),
            np.append(kept_documents, kept_documents[-1]),
            np.append(targets, self.eos_id),
            np.append(target_documents, target_documents[-1]),
        )
