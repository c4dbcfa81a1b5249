"""Stacking packed examples, and the keys that keep the documents in a block apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lmlab.data.batch import Example


def stack(examples: Sequence[Example], field: Literal["input_ids", "document_ids", "word_starts"]) -> Tensor:
    """One field of all examples as a (B, T) tensor.

    Args:
        examples: All of one length.
        field: Name of the array in each example.
    """
    return torch.from_numpy(np.stack([getattr(e, field) for e in examples]))


def pad(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """Tokens of examples, which may be of several lengths, and what keeps them from seeing too much.

    Args:
        examples: Blocks of one length, or rows of one document each.
        pad_id: Fills rows up to the longest.

    Returns:
        Batch keys: `input_ids` (B, T) int64; with padding `attention_mask` (B, T) bool, else what `document_keys` gives.
    """
    lengths = np.array([len(e.input_ids) for e in examples])
    if (lengths == lengths[0]).all():
        return {"input_ids": stack(examples, "input_ids"), **document_keys(np.stack([e.document_ids for e in examples]))}
    ids = np.full((len(examples), lengths.max()), pad_id, np.int64)
    for row, example in zip(ids, examples, strict=True):
        row[: len(example.input_ids)] = example.input_ids
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(np.arange(ids.shape[1]) < lengths[:, None])}


def document_keys(document_ids: np.ndarray, prefix: str = "") -> dict[str, Tensor]:
    """Batch keys for rows that hold several documents; none when every row holds one, which is faster.

    Args:
        document_ids: (B, T) int64, non-decreasing along a row.
        prefix: `decoder_` for the keys of a decoder beside an encoder.

    Returns:
        `document_ids` and `position_ids`, both (B, T) int64; positions restart with each document.
    """
    if (document_ids[:, 0] == document_ids[:, -1]).all():
        return {}
    index = np.arange(document_ids.shape[1])
    starts = np.diff(document_ids, axis=1, prepend=document_ids[:, :1] - 1) != 0
    begin = np.maximum.accumulate(np.where(starts, index, 0), axis=1)
    return {f"{prefix}document_ids": torch.from_numpy(document_ids), f"{prefix}position_ids": torch.from_numpy(index - begin)}
