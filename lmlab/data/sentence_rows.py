"""Batches of texts that belong together: two views of a sentence, neighbouring passages, pairs that the data gives."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lmlab.data.batch import Batch, Example
from lmlab.data.masking import MLMCollator
from lmlab.data.order import rng
from lmlab.data.packing import pad
from lmlab.errors import DataError

REPETITION = 13  # stream of randomness
Positives: TypeAlias = Literal["dropout", "word_repetition", "neighbours", "labelled"]
"""What belongs to a text: itself, read under another dropout; itself with some tokens twice; the passage after it; what the data says."""


@dataclass(frozen=True)
class SentenceRows:
    """Lays out the texts to compare as rows, one example after the other.

    Args:
        positives: What belongs to the text of an example. `neighbours` reads pairs of passages, the others single texts.
        hard_negatives: Whether examples bring a text that is like theirs and does not belong to it.
        length: Longest row, special tokens included; what is longer is cut.
        prefix: Special token ids before each text.
        suffix: Special token ids after each text, also a cut one.
        pad_id: Fills rows up to the longest.
        dup_rate: Most tokens to repeat in a view, as a share of the text; for `word_repetition`.
        masking: Masks the texts once more for a masked language model beside; None for none.
    """

    positives: Positives
    hard_negatives: Literal["none", "labelled"]
    length: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad_id: int
    dup_rate: float
    masking: MLMCollator | None = None

    def __call__(self, examples: Sequence[Example], seed: int) -> Batch:
        """Lays out and stacks.

        Returns:
            Batch with `input_ids` (B * V, T) for V views of each example: its text, what belongs to it, and the hard negative if there is
            one; `texts` (B, V) int64, a number for each text, the same for the same text; what `pad` adds; and with `masking` the batch
            `mlm` that it makes of each example's texts, each once.
        """
        texts = [self.texts(example) for example in examples]
        sources = [[found[0], *found] if self.positives in ("dropout", "word_repetition") else found for found in texts]
        views = [self._views(found, example, seed) for found, example in zip(sources, examples, strict=True)]
        counts = {"contrastive": torch.tensor([len(examples)])}
        batch = {
            **pad([self._row(e, text) for e, found in zip(examples, views, strict=True) for text in found], self.pad_id),
            "texts": torch.tensor([[_number(text) for text in found] for found in sources]),
            "counts": counts,
            "tokens": torch.tensor([sum(len(text) for found in texts for text in found)]),
            "num_labelled": torch.tensor([0]),
        }
        if self.masking is None:
            return batch
        # another index for each text of an example, so that their masks are drawn apart
        rows = [
            self._row(example._replace(index=len(found) * example.index + number), text)
            for example, found in zip(examples, texts, strict=True)
            for number, text in enumerate(found)
        ]
        masked = self.masking(rows, seed)
        counts["mlm"] = masked["counts"]["mlm"]
        return {**batch, "mlm": masked, "num_labelled": counts["mlm"]}

    def texts(self, example: Example) -> list[np.ndarray]:
        """The texts that an example holds, each once, cut to fit a row and without special tokens.

        Args:
            example: Of the view.

        Raises:
            DataError: If it does not bring what is to be compared.
        """
        begin, end = len(self.prefix), len(example.input_ids) - len(self.suffix)
        extra = example.extra or {}
        if self.positives == "neighbours":
            second = int(extra["second_start"])
            found = [example.input_ids[begin : second - len(self.suffix)], example.input_ids[second:end]]
        else:
            found = [example.input_ids[begin:end]]
            wanted = ["positive_ids"] if self.positives == "labelled" else []
            for key in [*wanted, *(["negative_ids"] if self.hard_negatives == "labelled" else [])]:
                if extra.get(key) is None:
                    raise DataError(
                        f"example {example.index} has no {key}",
                        why="it is to be compared with a text that the data gives, and its tuples are too short for that",
                        remedy="name another field in TupleCorpus.fields, or do without hard negatives",
                    )
                found.append(np.asarray(extra[key], np.int64))
        room = self.length - len(self.prefix) - len(self.suffix)
        return [text[:room] for text in found]

    def _views(self, sources: list[np.ndarray], example: Example, seed: int) -> list[np.ndarray]:
        if self.positives != "word_repetition":
            return sources
        repeated = repeat_tokens(sources[1], self.dup_rate, rng(seed, REPETITION, example.position, example.index))
        return [sources[0], repeated, *sources[2:]]

    def _row(self, example: Example, text: np.ndarray) -> Example:
        room = self.length - len(self.prefix) - len(self.suffix)
        ids = np.concatenate([self.prefix, text[:room], self.suffix]).astype(np.int64)
        return example._replace(input_ids=ids, document_ids=np.zeros(len(ids), np.int64), num_raw_tokens=len(text), word_starts=None)


def repeat_tokens(text: np.ndarray, dup_rate: float, generator: np.random.Generator) -> np.ndarray:
    """Writes some tokens of a text twice: a text that says the same and is longer.

    Args:
        text: (N,) tokens.
        dup_rate: Most of them to repeat, as a share; of a short text up to two all the same.
        generator: Decides how many, and which.

    Returns:
        (N + repeated,) tokens.

    Source: Wu et al. 2022, "ESimCSE: Enhanced Sample Building Method for Contrastive Learning of Unsupervised Sentence Embedding",
    section 3.1 (word repetition).
    """
    most = max(2, int(dup_rate * len(text)))
    chosen = generator.choice(len(text), min(len(text), int(generator.integers(most + 1))), replace=False)
    times = np.ones(len(text), np.int64)
    times[chosen] = 2
    return np.repeat(text, times)


def _number(text: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(text.astype(np.int64).tobytes(), digest_size=8).digest(), "little", signed=True)


def chunk(batch: Batch, first: int, last: int) -> Batch:
    """Some examples of a batch, as a batch that can be read but not compared.

    Args:
        batch: What `SentenceRows` made.
        first: The first of them.
        last: The one after the last.

    Returns:
        Batch with `input_ids`, `attention_mask` and `texts` where there are such, and `mlm` with its own `counts`.
    """
    size = len(batch["texts"])
    cut: Batch = {key: _share(batch[key], size, first, last) for key in ("texts", "input_ids", "attention_mask") if key in batch}
    if "mlm" in batch:
        masked = batch["mlm"]
        rows = {key: _share(masked[key], size, first, last) for key in ("input_ids", "attention_mask", "labels") if key in masked}
        before = masked["labels"].numel() // size * first
        within = (masked["supervised"] >= before) & (masked["supervised"] < before + rows["labels"].numel())
        supervised = masked["supervised"][within] - before
        cut["mlm"] = {**rows, "supervised": supervised, "counts": {"mlm": torch.tensor([len(supervised)], device=supervised.device)}}
    return cut


def _share(rows: Tensor, size: int, first: int, last: int) -> Tensor:
    each = len(rows) // size
    return rows[each * first : each * last]
