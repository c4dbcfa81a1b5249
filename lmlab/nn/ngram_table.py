"""The counts of an n-gram model as buffers of a module: a text that arrives in blocks, in any order, each counted once and whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmlab.data.ngrams import Counts, count, merge
from lmlab.data.smoothing import Smoothed, Smoothing, smooth

UNSEEN = -1
"""In `edges`, in place of a block that has not been counted."""

PENDING_TOKENS = 1 << 20
"""Tokens to gather before they are sorted into the tables: sorting them step by step would move the tables each time."""


class NGramTable(nn.Module):
    """Counts n-grams of consecutive blocks of a text.

    A context that a block cuts off is found in the block before it, so it does not matter how long blocks are: `edges` keeps the first
    and last few tokens of each block, whose n-grams are counted when they are asked for. A block that comes again is not counted again,
    for twice the counts are not the counts of a text. All is in the state dict, as tables of int64.

    Args:
        order: Tokens in the longest n-grams.
        vocab_size: V.
        begin_id: The token that begins a document.
    """

    edges: Tensor

    def __init__(self, order: int, vocab_size: int, begin_id: int) -> None:
        super().__init__()
        self.order, self.vocab_size, self.begin_id = order, vocab_size, begin_id
        self.reach = max(0, order - 2)  # tokens before the one that a block begins with, and after it, to put across an edge
        self.register_buffer("edges", torch.empty(0, 2 * self.reach + 1, dtype=torch.long))
        for level in range(1, order + 1):
            self.register_buffer(f"keys_{level}", torch.arange(vocab_size if level == 1 else 0))
            self.register_buffer(f"counts_{level}", torch.zeros(vocab_size if level == 1 else 0, dtype=torch.long))
        self._pending: list[np.ndarray] = []
        self._smoothed: dict[Smoothing, Smoothed] = {}

    def add(self, index: Tensor, tokens: Tensor) -> None:
        """Takes in blocks.

        Args:
            index: (B,) int64, which block of the text each is.
            tokens: (B, T + 1) int64; the last token is the first of the next block. T is at least the order.
        """
        where, first = np.unique(index.cpu().numpy(), return_index=True)
        blocks = tokens.cpu().numpy()[first]
        self._grow(int(where[-1]) + 1)
        new = self.edges.cpu().numpy()[where, 0] == UNSEEN
        if not new.any():
            return
        blocks = blocks[new]
        edge = np.concatenate([blocks[:, -1 - self.reach : -1], blocks[:, : self.reach + 1]], axis=1)
        self.edges[torch.from_numpy(where[new])] = torch.from_numpy(edge).to(self.edges.device)
        self._pending.append(blocks)
        self._smoothed = {}
        if sum(block.size for block in self._pending) >= PENDING_TOKENS:
            self._take_up()

    def counts(self) -> Counts:
        """The n-grams of all blocks so far, those across their edges included."""
        self._take_up()
        found, reach = self._tables(), self.reach
        if not reach:
            return found
        edges = self.edges.cpu().numpy()
        tails, heads, seen = edges[:, :reach], edges[:, reach:], edges[:, 0] != UNSEEN
        follows = seen & np.append(False, seen[:-1])
        joined = np.concatenate([np.roll(tails, 1, axis=0), heads], axis=1)[follows]
        for rows, skip in ((joined, reach), (heads[seen & ~follows], 0)):
            found = merge(found, count(rows, self.order, self.vocab_size, self.begin_id, skip)) if len(rows) else found
        return found

    def smoothed(self, smoothing: Smoothing) -> Smoothed:
        """The model that the counts so far make; kept until more is counted.

        Args:
            smoothing: See `lmlab.data.smoothing.smooth`.
        """
        if smoothing not in self._smoothed:
            self._smoothed[smoothing] = smooth(self.counts(), smoothing)
        return self._smoothed[smoothing]

    def _grow(self, num_blocks: int) -> None:
        missing = num_blocks - len(self.edges)
        if missing > 0:
            self.edges = torch.cat([self.edges, self.edges.new_full((missing, self.edges.shape[1]), UNSEEN)])

    def _tables(self) -> Counts:
        keys, counts = ([getattr(self, f"{name}_{k}").cpu().numpy() for k in range(1, self.order + 1)] for name in ("keys", "counts"))
        return Counts(self.vocab_size, self.begin_id, tuple(keys), tuple(counts))

    def _take_up(self) -> None:
        blocks, self._pending = self._pending, []
        if not blocks:
            return
        found = count(np.concatenate(blocks), self.order, self.vocab_size, self.begin_id, self.reach)
        found = merge(self._tables(), found)
        for level, (keys, counts) in enumerate(zip(found.keys, found.counts, strict=True), start=1):
            setattr(self, f"keys_{level}", torch.from_numpy(keys).to(self.edges.device))
            setattr(self, f"counts_{level}", torch.from_numpy(counts).to(self.edges.device))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._take_up()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # tables are as long as what was counted, which torch would refuse
        for name, buffer in self.named_buffers(recurse=False):
            if prefix + name in state_dict:
                setattr(self, name, buffer.new_empty(state_dict[prefix + name].shape))
        self._pending, self._smoothed = [], {}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
