"""The streams are those of `torch.manual_seed`."""

from __future__ import annotations

import pytest
import torch

from lmlab.nn.seeding import reseed


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1, 2**64 - 1])
def test_the_stream_is_that_of_torch(seed: int) -> None:
    torch.manual_seed(seed)
    start, drawn = torch.initial_seed(), torch.randn(5)
    torch.manual_seed(1)
    reseed(seed)
    assert torch.initial_seed() == start and torch.randn(5).equal(drawn)


def test_accelerators_are_seeded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = list[int]()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    reseed(4)
    assert seeds == [4]
