"""Positions against complex numbers, transformers' buckets and written-out formulas."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.t5.modeling_t5 import T5Attention

from lmlab.nn import position


def test_rotary_is_a_turn_in_the_complex_plane() -> None:
    """Channel i and i + K/2 are one complex number, turned by position / base^(2 i / K)."""
    positions, base = torch.tensor([[0, 1, 5], [7, 300, 2]]), 100.0
    x = torch.randn(2, 3, 2, 6)
    turned = position.rotate(x, position.rotary(positions, 6, base, torch.float32))
    for b in range(2):
        for t in range(3):
            for h in range(2):
                for i in range(3):
                    z = complex(x[b, t, h, i], x[b, t, h, i + 3]) * cmath.exp(1j * float(positions[b, t]) * base ** (-2 * i / 6))
                    assert complex(turned[b, t, h, i], turned[b, t, h, i + 3]) == pytest.approx(z, rel=1e-4, abs=1e-4)


def test_rotary_scores_depend_on_distance_only() -> None:
    """Shifting all positions changes no score."""
    q, k = torch.randn(1, 4, 1, 8), torch.randn(1, 4, 1, 8)

    def scores(shift: int) -> torch.Tensor:
        table = position.rotary(torch.arange(4) + shift, 8, 10000.0, torch.float32)
        return torch.einsum("bthk,bshk->bts", position.rotate(q, table), position.rotate(k, table))

    torch.testing.assert_close(scores(0), scores(50), rtol=1e-4, atol=1e-5)


def test_sinusoids() -> None:
    """Sines of position / 10000^(2 i / size), and the cosines beside them."""
    table = position.sinusoids(torch.tensor([0, 3, 40]), 4, torch.float32)
    for row, p in zip(table.tolist(), (0, 3, 40), strict=True):
        assert row == pytest.approx([math.sin(p), math.cos(p), math.sin(p / 100), math.cos(p / 100)], abs=1e-5)


@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 10), (16, 64)])
def test_buckets_are_transformers(direction, num_buckets, max_distance) -> None:
    """Every distance up to 400 falls into the same bucket."""
    distance = torch.arange(-400, 401)
    theirs = T5Attention._relative_position_bucket(
        distance, bidirectional=direction == "bidirectional", num_buckets=num_buckets, max_distance=max_distance
    )
    torch.testing.assert_close(position.relative_buckets(distance, num_buckets, max_distance, direction), theirs)


@given(length=st.integers(1, 6), past=st.integers(0, 5))
def test_spread_is_a_lookup_per_pair(length, past) -> None:
    """Row t, column s holds the value of distance s - (t + past)."""
    distances = position.distances(length, past, torch.device("cpu"))
    matrix = position.spread(torch.stack((distances, 10 * distances)), length, past)
    assert matrix.shape == (1, 2, length, past + length)
    for t in range(length):
        for s in range(past + length):
            assert matrix[0, :, t, s].tolist() == [s - t - past, 10 * (s - t - past)]


def test_relative_bias_learns_where_pairs_are() -> None:
    """The gradient of a bucket is the number of pairs in it."""
    bias = position.RelativeBias(2, 8, 16, "bidirectional", std=0.02)
    bias(5).sum().backward()
    pairs = torch.zeros(8)
    for t in range(5):
        for s in range(5):
            pairs[position.relative_buckets(torch.tensor(s - t), 8, 16, "bidirectional")] += 1
    torch.testing.assert_close(bias.table.weight.grad, pairs[:, None].expand(-1, 2))


def test_alibi_slopes() -> None:
    """The series of the paper for a power of two, and its filling for others."""
    assert position.alibi_slopes(8) == pytest.approx([2.0**-i for i in range(1, 9)])
    assert position.alibi_slopes(6) == pytest.approx([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    bias = position.alibi(8, 2, 1, torch.device("cpu"))
    assert bias[0, 0].tolist() == [[-0.5, 0.0, -0.5], [-1.0, -0.5, 0.0]]


def test_restarting_positions() -> None:
    """Each document counts from 0; a number that comes back later is another document."""
    documents = torch.tensor([[4, 4, 4, 1, 1, 4], [0, 1, 2, 2, 2, 2]])
    assert position.restarting_positions(documents).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3]]
