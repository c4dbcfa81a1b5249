"""Pooling: against plain loops over the real tokens."""

from __future__ import annotations

import pytest
import torch

from lmlab.nn.pooling import Pooling, pool


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_padding_has_no_part_in_it(pooling: Pooling) -> None:
    torch.manual_seed(0)
    states, lengths = torch.randn(4, 7, 3), [7, 1, 4, 6]
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    expected = []
    for row, length in zip(states, lengths, strict=True):
        real = [row[i] for i in range(length)]
        expected.append({"cls": real[0], "mean": sum(real) / length, "last": real[-1]}[pooling])  # type: ignore[arg-type]
    torch.testing.assert_close(pool(states, mask, pooling), torch.stack(expected))
    torch.testing.assert_close(pool(states.masked_fill(~mask[..., None], 1e6), mask, pooling), torch.stack(expected))
    whole = torch.stack([{"cls": r[0], "mean": r.mean(0), "last": r[-1]}[pooling] for r in states])
    torch.testing.assert_close(pool(states, None, pooling), whole)
