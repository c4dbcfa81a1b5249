"""The cache's buffers against plain concatenation."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lmlab.nn.cache import KVCache, LayerCache


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_append_concatenates(lengths) -> None:
    """Whatever the chunks, through every growth of the buffers."""
    cache, keys, values = LayerCache(), [], []
    for length in lengths:
        keys.append(torch.randn(2, length, 3, 4))
        values.append(torch.randn(2, length, 3, 4))
        seen = cache.append(keys[-1], values[-1])
        assert torch.equal(seen.keys, torch.cat(keys, dim=1))
        assert torch.equal(seen.values, torch.cat(values, dim=1))


def test_buffers_grow_seldom() -> None:
    """A hundred tokens are copied into few new buffers."""
    cache, buffers = LayerCache(), set()
    for _ in range(100):
        cache.append(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
        assert cache.buffers is not None
        buffers.add(cache.buffers.keys.shape[1])
    assert len(buffers) <= 7


def test_positions_continue() -> None:
    """From the count of tokens, or from each row's last given position."""
    cpu = torch.device("cpu")
    cache = KVCache()
    assert cache.positions(None, 3, cpu).tolist() == [0, 1, 2]
    cache.length = 3
    assert cache.positions(None, 2, cpu).tolist() == [3, 4]
    cache = KVCache()
    cache.positions(torch.tensor([[0, 0, 1], [0, 1, 2]]), 3, cpu)
    cache.length = 3
    assert cache.positions(None, 2, cpu).tolist() == [[2, 3], [3, 4]]
    assert cache.positions(None, 1, cpu).tolist() == [[4], [5]]


def test_mask_appears_when_needed() -> None:
    """No mask until one is given; earlier tokens then count as attended."""
    cpu, cache = torch.device("cpu"), KVCache()
    assert cache.extend_mask(None, 1, 2, cpu) is None
    cache.length = 2
    assert cache.extend_mask(torch.tensor([[False, True]]), 1, 2, cpu).tolist() == [[True, True, False, True]]
    assert cache.extend_mask(None, 1, 1, cpu).tolist() == [[True, True, False, True, True]]
