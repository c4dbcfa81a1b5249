"""Pseudo-log-likelihood: what a masked model thinks of a text, one masked token at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from lmlab.data.batch import Example
from lmlab.data.packing import document_keys
from lmlab.errors import DataError
from lmlab.nn.evaluation import evaluating
from lmlab.objectives.mlm import MLM


def pseudo_bits_per_byte(objective: MLM, examples: Sequence[Example], batch_size: int = 64) -> float:
    """Bits per byte when every token is masked in turn and predicted from all others.

    Not a probability of the text: each token is told its right-hand neighbours. It is lower than any causal model's bits per byte
    for that reason alone, and must never be ranked against them.

    Args:
        objective: A masked language model.
        examples: Blocks of its view; one row per token. The documents of a block do not see each other, as in training.
        batch_size: Rows per forward pass.

    Raises:
        DataError: If there is no text in the examples.

    Source: Salazar et al. 2020, "Masked Language Model Scoring", section 2.2.
    """
    tokenizer, token_bytes = objective.tokenizer, objective.tokenizer.token_bytes()
    nats, num_bytes = 0.0, 0
    with evaluating(objective):
        for example in examples:
            places = np.flatnonzero(~np.isin(example.input_ids, list(tokenizer.special_ids)))
            num_bytes += int(token_bytes[example.input_ids[places]].sum())
            keys = {"input_ids": torch.from_numpy(example.input_ids)[None], **document_keys(example.document_ids[None])}
            for start in range(0, len(places), batch_size):
                at = torch.from_numpy(places[start : start + batch_size]).to(objective.device)
                batch = {name: value.to(objective.device).repeat(len(at), 1) for name, value in keys.items()}
                row = torch.arange(len(at), device=objective.device)
                truth = batch["input_ids"][row, at]
                batch["input_ids"][row, at] = tokenizer.mask_id
                logits = objective.head(objective.states(batch)[row, at])
                nats += F.cross_entropy(logits.float(), truth, reduction="sum").item()
    if not num_bytes:
        raise DataError(
            "there is no text to measure",
            where="examples",
            why=f"{len(examples)} blocks, no token of text in them",
            remedy="pass blocks of text",
        )
    return nats / math.log(2) / num_bytes
