"""How a network knows the order of its tokens: rotary, relative-bias, linear-bias and sinusoidal positions.

The relative kinds (rotary, T5's bias, ALiBi) only ever see differences, so left padding or a document that starts in the middle of a
row does not change them; the two biases read distances off the place in the row and are shared by all rows.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Rotary(NamedTuple):
    """Tables that turn queries and keys, computed once per forward and shared by the layers.

    Args:
        cos: (T, 1, K) or (B, T, 1, K).
        sin: The same shape, the first half of the channels negated.
    """

    cos: Tensor
    sin: Tensor


def rotary(positions: Tensor, head_size: int, base: float, dtype: torch.dtype) -> Rotary:
    """Computes the angle of each position and pair of channels.

    Args:
        positions: (T,) or (B, T) int64.
        head_size: K, even; channel i is paired with channel i + K/2, as in Llama's and transformers' weights.
        base: Slowest wavelength over 2 pi.
        dtype: What queries and keys are in; angles are computed in float32 whatever it is.

    Source: Su et al. 2021 (RoFormer), eq. 34.
    """
    exponents = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32) / head_size
    angles = positions[..., None].float() * base**-exponents  # (..., T, K/2)
    cos, sin = angles.cos(), angles.sin()
    twice = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    return Rotary(*(x[..., None, :].to(dtype) for x in twice))  # (..., T, 1, K)


def rotate(x: Tensor, table: Rotary) -> Tensor:
    """Turns each pair of channels by its token's angle.

    Args:
        x: (B, T, H, K) queries or keys, before the heads are moved in front (the memory is contiguous here).
        table: From `rotary`.
    """
    first, second = x.chunk(2, dim=-1)
    # `roll` would do, but AOTAutograd mistakes the memory layout of its gradient
    return torch.addcmul(x * table.cos, torch.cat((second, first), dim=-1), table.sin)


def sinusoids(positions: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Fixed position vectors, sines in the even channels and cosines in the odd ones.

    Args:
        positions: (T,) or (B, T) int64.
        size: Width, even.
        dtype: Of the result.

    Returns:
        (T, size) or (B, T, size).

    Source: Vaswani et al. 2017, section 3.5.
    """
    exponents = torch.arange(0, size, 2, device=positions.device, dtype=torch.float32) / size
    angles = positions[..., None].float() * 10000.0**-exponents
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2).to(dtype)


def restarting_positions(document_ids: Tensor) -> Tensor:
    """Counts from 0 again wherever a new document begins.

    Args:
        document_ids: (B, T) int64, equal for neighbouring tokens of one document.

    Returns:
        (B, T) int64.
    """
    index = torch.arange(document_ids.shape[1], device=document_ids.device)
    starts = F.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0)).long() * index
    return index - starts.cummax(dim=1).values


def distances(length: int, past: int, device: torch.device) -> Tensor:
    """Every difference key place - query place that occurs, once.

    Args:
        length: T, queries; they come after `past` earlier keys.
        past: Keys before the first query.
        device: Where to make it.

    Returns:
        (past + 2 T - 1,) int64, ascending from -(past + T - 1) to T - 1.
    """
    return torch.arange(-(past + length - 1), length, device=device)


def spread(values: Tensor, length: int, past: int) -> Tensor:
    """Lays a value per distance out as a score matrix, which costs far less than a lookup per pair.

    Args:
        values: (H, past + 2 T - 1), one per entry of `distances`.
        length: T.
        past: Keys before the first query.

    Returns:
        (1, H, T, past + T).
    """
    size = past + length
    queries = torch.arange(past, size, device=values.device)
    keys = torch.arange(size, device=values.device)
    index = keys[None, :] - queries[:, None] + (size - 1)
    return values.index_select(1, index.flatten()).view(1, -1, length, size)


class RelativeBias(nn.Module):
    """T5's relative positions: a learned score per head and bucket of distance, shared by all layers of a stack.

    Args:
        num_heads: H.
        num_buckets: Distances are sorted into so many buckets: one each while short, logarithmic when longer.
        max_distance: From here on all distances share the last bucket.
        direction: `bidirectional` uses half of the buckets for keys after the query.
        std: Standard deviation the table is drawn with.

    Source: Raffel et al. 2020 (T5), section 2.1; bucket formula from the released code.
    """

    def __init__(self, num_heads: int, num_buckets: int, max_distance: int, direction: Literal["bidirectional", "causal"], std: float):
        super().__init__()
        self.num_buckets, self.max_distance, self.std = num_buckets, max_distance, std
        self.direction: Literal["bidirectional", "causal"] = direction
        self.table = nn.Embedding(num_buckets, num_heads)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the table."""
        nn.init.normal_(self.table.weight, std=self.std)

    def forward(self, length: int, past: int = 0) -> Tensor:
        """Scores to add to every layer's attention.

        Args:
            length: T.
            past: Keys before the first query.

        Returns:
            (1, H, T, past + T).
        """
        buckets = relative_buckets(distances(length, past, self.table.weight.device), self.num_buckets, self.max_distance, self.direction)
        return spread(self.table(buckets).t(), length, past)


def relative_buckets(distance: Tensor, num_buckets: int, max_distance: int, direction: Literal["bidirectional", "causal"]) -> Tensor:
    """Sorts distances into T5's buckets.

    Args:
        distance: int64, key place - query place.
        num_buckets: In all.
        max_distance: From here on the last bucket.
        direction: With `causal`, keys after the query all fall into bucket 0 (they are masked anyway).

    Returns:
        int64 in [0, num_buckets), the shape of `distance`.
    """
    if direction == "bidirectional":
        num_buckets //= 2
        offset, distance = (distance > 0).long() * num_buckets, distance.abs()
    else:
        offset, distance = torch.zeros_like(distance), (-distance).clamp(min=0)
    exact = num_buckets // 2
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    logarithmic = (exact + (ratio * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return offset + torch.where(distance < exact, distance, logarithmic)


def alibi_slopes(num_heads: int) -> list[float]:
    """The slope of each head: a geometric series from 2^(-8/H) down to 2^-8.

    Args:
        num_heads: H; when it is not a power of two, every second slope of the next power's series fills the rest.

    Source: Press et al. 2022 (ALiBi), section 3 and released code.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    return slopes + [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(num_heads - power)]


def alibi(num_heads: int, length: int, past: int, device: torch.device) -> Tensor:
    """A penalty that grows with distance, in both directions.

    Args:
        num_heads: H.
        length: T.
        past: Keys before the first query.
        device: Where to make it.

    Returns:
        (1, H, T, past + T) float32.
    """
    slopes = torch.tensor(alibi_slopes(num_heads), device=device)
    return spread(-slopes[:, None] * distances(length, past, device).abs(), length, past)
