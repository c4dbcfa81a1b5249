"""Keys and values kept while decoding, so that each new token costs one token's work."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lmlab.errors import ConfigError


class KeysValues(NamedTuple):
    """Keys and values of one attention.

    Args:
        keys: (B, S, G, K).
        values: (B, S, G, K).
    """

    keys: Tensor
    values: Tensor


class LayerCache:
    """What one layer keeps: its own keys and values, which grow, and those of the encoder's states, which do not.

    The buffers double when full, so that n tokens are copied O(n) times in all, not O(n^2).
    """

    def __init__(self) -> None:
        self.length = 0
        self.buffers: KeysValues | None = None
        self.memory: KeysValues | None = None

    def append(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Adds new tokens.

        Args:
            keys: (B, T, G, K) of the new tokens.
            values: The same shape.

        Returns:
            Keys and values of all tokens so far, (B, past + T, G, K): views of the buffers.

        Raises:
            ConfigError: If gradients are wanted, which a buffer written in place cannot carry.
        """
        if keys.requires_grad:
            raise ConfigError(
                "a KV cache cannot be differentiated", why="its buffers are written in place", remedy="decode in torch.no_grad()"
            )
        end = self.length + keys.shape[1]
        if self.buffers is None or end > self.buffers.keys.shape[1]:
            self.buffers = KeysValues(*(self._grown(i, x, 2 * end) for i, x in enumerate((keys, values))))
        self.buffers.keys[:, self.length : end] = keys
        self.buffers.values[:, self.length : end] = values
        self.length = end
        return KeysValues(self.buffers.keys[:, :end], self.buffers.values[:, :end])

    def select(self, rows: Tensor) -> None:
        """Keeps, repeats or reorders the rows of the batch.

        Args:
            rows: (new B,) int64.
        """
        if self.buffers is not None:
            self.buffers = KeysValues(*(x.index_select(0, rows) for x in self.buffers))
        if self.memory is not None:
            self.memory = KeysValues(*(x.index_select(0, rows) for x in self.memory))

    def _grown(self, which: int, new: Tensor, capacity: int) -> Tensor:
        grown = new.new_empty(new.shape[0], capacity, *new.shape[2:])
        if self.buffers is not None:
            grown[:, : self.length] = self.buffers[which][:, : self.length]
        return grown


class KVCache:
    """What a decoder has read so far. Make an empty one, and pass it to every call; each call then takes only the new tokens.

    A prompt is padded on the left, with an `attention_mask`; later calls need no mask for their own tokens. Position ids, where the
    first call is given them, are continued from each row's last one.
    """

    def __init__(self) -> None:
        self.layers: list[LayerCache] = []
        self.length = 0
        self.attended: Tensor | None = None
        self.last_position: Tensor | None = None
        self.memory_mask: Tensor | None = None

    def layer(self, index: int) -> LayerCache:
        """The part of one layer, made when first asked for."""
        if index == len(self.layers):
            self.layers.append(LayerCache())
        return self.layers[index]

    def extend_mask(self, attention_mask: Tensor | None, batch_size: int, length: int, device: torch.device) -> Tensor | None:
        """Notes which of the new tokens may be attended.

        Args:
            attention_mask: (B, T) bool for the new tokens; None if all may.
            batch_size: B.
            length: T.
            device: Of the tokens.

        Returns:
            (B, past + T) bool for all tokens so far, or None if all may be attended.
        """
        if attention_mask is not None or self.attended is not None:
            past = torch.ones(batch_size, self.length, dtype=torch.bool, device=device) if self.attended is None else self.attended
            new = torch.ones(batch_size, length, dtype=torch.bool, device=device) if attention_mask is None else attention_mask.bool()
            self.attended = torch.cat((past, new), dim=1)
        return self.attended

    def positions(self, position_ids: Tensor | None, length: int, device: torch.device) -> Tensor:
        """Continues each row's positions.

        Args:
            position_ids: (B, T) int64 of the new tokens, if the caller knows better.
            length: T.
            device: Of the tokens.

        Returns:
            (B, T) or (T,) int64.
        """
        if position_ids is None:
            new = torch.arange(length, device=device)
            position_ids = new + self.length if self.last_position is None else self.last_position + 1 + new
        if position_ids.dim() == 2:
            self.last_position = position_ids[:, -1:]
        return position_ids

    def select(self, rows: Tensor) -> None:
        """Keeps, repeats or reorders the rows of the batch, for beam search or to drop finished rows.

        Args:
            rows: (new B,) int64.
        """
        for layer in self.layers:
            layer.select(rows)
        self.attended = None if self.attended is None else self.attended.index_select(0, rows)
        self.last_position = None if self.last_position is None else self.last_position.index_select(0, rows)
        self.memory_mask = None if self.memory_mask is None else self.memory_mask.index_select(0, rows)
