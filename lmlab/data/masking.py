"""Masking for masked language models: which positions, and what stands there instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from lmlab.config import check_choices, require
from lmlab.data.batch import IGNORE_INDEX, Batch, Example
from lmlab.data.order import rng
from lmlab.data.packing import pad

MASKING = 2  # stream of randomness


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How tokens are masked.

    Args:
        unit: Mask single tokens, or whole words (all pieces of a word or none).
        chinese: What a word is in Chinese, for whole words: a piece of the vocabulary, or what a dictionary says (extra `zh`).
        mask_share: Share of chosen positions that become the mask token.
        random_share: Share that becomes a random token; the rest stays as it is.
        final_prob: Masking rate at the end of a linear schedule; None for a constant rate.
        final_at_examples: Examples after which the schedule has reached `final_prob`.
        eval_prob: Masking rate of the evaluation, whatever the training rate, so that runs can be compared.

    Source: Devlin et al. 2019, "BERT", section 3.1 and appendix A.1 (15 %, 80/10/10); Liu et al. 2019, "RoBERTa", section 4.1 (dynamic);
    Cui et al. 2021, "Pre-Training with Whole Word Masking for Chinese BERT", section 3; Ankner et al. 2024, "Dynamic Masking Rate
    Schedules for MLM Pretraining", section 2 (linear decay of the rate).
    """

    unit: Literal["token", "word"] = "token"
    chinese: Literal["pieces", "words"] = "pieces"
    mask_share: float = 0.8
    random_share: float = 0.1
    final_prob: float | None = None
    final_at_examples: int | None = None
    eval_prob: float = 0.15

    def __post_init__(self) -> None:
        """Checks shares and schedule."""
        check_choices(self)
        shares = self.mask_share >= 0 and self.random_share >= 0 and self.mask_share + self.random_share <= 1
        require(shares, self, "mask_share", "mask_share and random_share are shares of one whole", "let them add up to at most 1")
        require(0 < self.eval_prob < 1, self, "eval_prob", "a masking rate lies between 0 and 1", "0.15 is customary")
        if self.final_prob is not None:
            require(0 < self.final_prob < 1, self, "final_prob", "a masking rate lies between 0 and 1", "leave it out for a constant rate")
        both = (self.final_prob is None) == (self.final_at_examples is None)
        require(both, self, "final_at_examples", "a schedule needs both its end and the way there", "set final_prob and final_at_examples")

    def prob(self, start: float, position: int) -> float:
        """Masking rate for the n-th example of a run.

        Args:
            start: Rate of the first example.
            position: n.
        """
        if self.final_prob is None or self.final_at_examples is None:
            return start
        share = min(1.0, position / self.final_at_examples)
        return start + share * (self.final_prob - start)


@dataclass(frozen=True)
class MLMCollator:
    """Masks an exact number of positions of each example, round(rate * T), chosen by (seed, position, index) alone.

    The exact count keeps shapes static and takes one source of noise out of the loss.

    Args:
        config: How tokens are masked.
        prob: Masking rate of the first example.
        mask_id: Id of the mask token.
        pad_id: Id of the padding token, for rows of several lengths.
        ordinary_ids: Number of ids from which random tokens are drawn; `special_ids` among them are redrawn.
        special_ids: Ids that are never masked and never drawn.
    """

    config: MaskingConfig
    prob: float
    mask_id: int
    pad_id: int
    ordinary_ids: int
    special_ids: tuple[int, ...]

    def __call__(self, examples: Sequence[Example], seed: int) -> Batch:
        """Corrupts and stacks.

        Returns:
            Batch with `input_ids` and `labels` (B, T), `supervised` (N,) and what `pad` adds.
        """
        keys = pad(examples, self.pad_id)
        input_ids = keys["input_ids"]
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        for row, example in enumerate(examples):
            generator = rng(seed, MASKING, example.position, example.index)
            chosen = self.choose(example, generator)
            original = example.input_ids[chosen]
            labels[row, chosen] = torch.from_numpy(original)
            input_ids[row, chosen] = torch.from_numpy(self.replace(original, generator))
        supervised = (labels.flatten() != IGNORE_INDEX).nonzero().squeeze(1)
        return {
            **keys,
            "labels": labels,
            "supervised": supervised,
            "counts": {"mlm": torch.tensor([supervised.numel()])},
            "tokens": torch.tensor([sum(e.num_raw_tokens for e in examples)]),
        }

    def choose(self, example: Example, generator: np.random.Generator) -> np.ndarray:
        """Sorted positions to predict, (n,) int64: exactly round(rate * T), at least one, never a special token.

        None in an example that holds special tokens only.

        Whole words are taken in random order as long as they fit, as BERT does; the count can then fall short of the target
        by less than the longest word left out.
        """
        ids = example.input_ids
        candidates = np.flatnonzero(~np.isin(ids, self.special_ids))
        if not len(candidates):
            return candidates
        target = min(len(candidates), max(1, round(self.config.prob(self.prob, example.position) * len(ids))))
        if self.config.unit == "token" or example.word_starts is None:
            return np.sort(generator.choice(candidates, target, replace=False, shuffle=False))
        starts = example.word_starts[candidates].copy()
        starts[0] = True
        starts[1:] |= np.diff(candidates) > 1  # a special token in between ends a word
        words = np.split(candidates, np.flatnonzero(starts)[1:])
        chosen: list[np.ndarray] = []
        room = target
        for word in generator.permutation(len(words)):
            if len(words[word]) <= room:
                chosen.append(words[word])
                room -= len(words[word])
            if not room:
                break
        if not chosen:  # every word is longer than the target: one word rather than none
            chosen = [words[int(generator.integers(len(words)))]]
        return np.sort(np.concatenate(chosen))

    def replace(self, original: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """What stands at the chosen positions: the mask token, a random token, or the token itself; (n,) int64."""
        draw = generator.random(len(original))
        random_ids = self._ordinary()[generator.integers(len(self._ordinary()), size=len(original))]
        as_random = np.where(draw < self.config.mask_share + self.config.random_share, random_ids, original)
        return np.where(draw < self.config.mask_share, self.mask_id, as_random)

    def _ordinary(self) -> np.ndarray:
        return _ordinary_ids(self.ordinary_ids, self.special_ids)


_ORDINARY: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}


def _ordinary_ids(num_ids: int, special_ids: tuple[int, ...]) -> np.ndarray:
    key = (num_ids, special_ids)
    if key not in _ORDINARY:
        _ORDINARY[key] = np.setdiff1d(np.arange(num_ids), np.asarray(special_ids))
    return _ORDINARY[key]
