"""Batches of sentence pairs: segments, labels of the pairs, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lmlab.data.batch import Batch, Example
from lmlab.data.masking import MLMCollator


@dataclass(frozen=True)
class PairCollator:
    """Masks tokens of sentence pairs, as in single texts, and says which of the two sentences each token belongs to.

    Args:
        masking: Masks and stacks.
        part: Name of the loss of the pairs.
    """

    masking: MLMCollator
    part: str

    def __call__(self, examples: Sequence[Example], seed: int) -> Batch:
        """Corrupts and stacks.

        Returns:
            What `masking` gives, with `token_type_ids` (B, T) int64, 0 up to the separator after the first sentence, and `pair_labels`
            (B,) int64, 1 for a false pair.
        """
        batch = self.masking(examples, seed)
        extras = [e.extra or {} for e in examples]
        second = torch.tensor([extra["second_start"] for extra in extras])[:, None]
        counts = {**batch["counts"], self.part: torch.tensor([len(examples)])}
        places = torch.from_numpy(np.arange(batch["input_ids"].shape[1]))
        return {
            **batch,
            "token_type_ids": (places >= second).long() * batch.get("attention_mask", torch.ones(1, dtype=torch.bool)),
            "pair_labels": torch.tensor([extra["pair_label"] for extra in extras]),
            "counts": counts,
            "num_labelled": batch["counts"]["mlm"],
        }
