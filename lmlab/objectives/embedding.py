"""Vectors of texts, from a network at rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab.nn.evaluation import evaluating
from lmlab.objectives.base import Objective
from lmlab.run.samples import Piece

ROWS = 64
"""Texts in one forward pass."""


def embed_rows(objective: Objective, rows: Sequence[Sequence[int]], vectors_of: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
    """Vectors of rows of tokens; without dropout, also in the middle of training. Rows of like length are read together.

    Args:
        objective: Whose network is asked.
        rows: Tokens of each text, special ones included; at least one in each.
        vectors_of: Makes vectors (R, D) of a batch with `input_ids` (R, T) and `attention_mask`, absent where nothing is padded.

    Returns:
        (N, D) float32 of length 1, in the order of `rows`, on the CPU.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: list[Tensor] = []
    with evaluating(objective):
        for first in range(0, len(order), ROWS):
            some = [torch.tensor(rows[i]) for i in order[first : first + ROWS]]
            lengths = torch.tensor([len(row) for row in some])
            ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=objective.tokenizer.pad_id)
            batch = {"input_ids": ids.to(objective.device)}
            if lengths[0] != lengths[-1]:
                batch["attention_mask"] = (torch.arange(ids.shape[1]) < lengths[:, None]).to(objective.device)
            found.append(F.normalize(vectors_of(batch).float(), dim=-1).cpu())
    if not found:
        return torch.zeros(0, objective.backbone_config.hidden_size)
    return torch.cat(found)[torch.tensor(order).argsort()]


def rows_of_texts(objective: Objective, texts: Sequence[str], length: int, prefix: Sequence[int], suffix: Sequence[int]) -> list[list[int]]:
    """Texts as rows of tokens.

    Args:
        objective: Whose tokenizer cuts them.
        texts: In any number.
        length: Longest row; what is longer is cut, the suffix stays.
        prefix: Special token ids before each text.
        suffix: Special token ids after it.
    """
    room = length - len(prefix) - len(suffix)
    return [[*prefix, *ids[:room], *suffix] for ids in map(objective.tokenizer.encode, texts)]


def nearest(query: int, vectors: Tensor, texts: list[str], most: int) -> list[Piece]:
    """The texts that are most like one of them.

    Args:
        query: Which one; it is not among them.
        vectors: (N, D) of length 1.
        texts: What they are of.
        most: How many to find; fewer if there are not so many others.

    Returns:
        The nearest first, each with its cosine.
    """
    cosines = (vectors @ vectors[query]).index_fill(0, torch.tensor([query]), -torch.inf)
    found = cosines.topk(min(most, len(texts) - 1))
    return [Piece(text=texts[i], by="search", cosine=c) for c, i in zip(found.values.tolist(), found.indices.tolist(), strict=True)]
