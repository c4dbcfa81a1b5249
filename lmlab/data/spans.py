"""Span corruption: spans of the text are dropped from the input and asked for in the target."""

from __future__ import annotations

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
    """The longest text whose corrupted input has at most `length` tokens.

    Args:
        length: Encoder length, EOS included.
        noise_density: Share of tokens dropped.
        mean_span: Mean tokens per span.

    Raises:
        ConfigError: If not even one span fits.

    Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", sections
    3.1.4 and 3.3.4; the search for the length follows the description of `random_spans_helper` in its code.
    """
    best: SpanLengths | None = None
    for raw in range(2, 4 * length):
        noise = min(max(round(raw * noise_density), 1), raw - 1)
        spans = min(max(round(noise / mean_span), 1), raw - noise)
        sizes = SpanLengths(raw, raw - noise + spans + 1, noise + spans + 1, noise, spans)
        if sizes.inputs <= length:
            best = sizes
        elif sizes.inputs > length + 2:
            break
    if best is None:
        raise ConfigError(f"no span fits into an input of {length} tokens", where="length", remedy="set a length of at least 4")
    return best


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

    A span that begins in one document and ends in the next is allowed; each of its tokens belongs to its own document. Where the
    document changes within a row, the decoder starts anew with the start token, so that documents stay apart on both sides.

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
        spots = np.flatnonzero(first)
        dropped = np.flatnonzero(mask)
        at = np.searchsorted(dropped, spots)
        targets = np.insert(ids[dropped], at, sentinels)
        target_documents = np.insert(documents[dropped], at, documents[spots])
        return (
            np.append(inputs[keep], self.eos_id),
            np.append(documents[keep], documents[-1]),
            np.append(targets, self.eos_id),
            np.append(target_documents, target_documents[-1]),
        )
