"""Alignment, uniformity and effective rank: against numpy, straight from the definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from lmlab.nn.vector_quality import effective_rank, moments, potentials, squared_distances

TOLERANCE = 1e-5  # float32
RNG = np.random.default_rng(0)
VECTORS, OTHERS = RNG.normal(size=(9, 6)) * [1, 2, 3, 1, 1, 0.1], RNG.normal(size=(9, 6))
UNIT, UNIT_OTHERS = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (VECTORS, OTHERS))


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_alignment() -> None:
    expected = np.mean([np.linalg.norm(a - b) ** 2 for a, b in zip(UNIT, UNIT_OTHERS, strict=True)])
    assert squared_distances(tensor(VECTORS), tensor(OTHERS)).mean().item() == pytest.approx(expected, rel=TOLERANCE)


def test_uniformity() -> None:
    pairs = [math.exp(-2 * np.linalg.norm(a - b) ** 2) for a, b in itertools.combinations(UNIT, 2)]
    assert math.log(potentials(tensor(VECTORS)).mean()) == pytest.approx(math.log(np.mean(pairs)), rel=TOLERANCE)


def test_effective_rank_of_sums_over_batches() -> None:
    shares = np.linalg.svd(np.cov(UNIT, rowvar=False), compute_uv=False)
    shares /= shares.sum()
    expected = math.exp(-sum(p * math.log(p) for p in shares if p > 0))
    sums = [moments(tensor(part)) for part in (VECTORS[:4], VECTORS[4:])]
    found = effective_rank(sum(s.first for s in sums) / 9, sum(s.second for s in sums) / 9)  # type: ignore[arg-type]
    assert found == pytest.approx(expected, rel=1e-4)


def test_effective_rank_at_its_ends() -> None:
    line = moments(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]))
    even = moments(torch.cat([torch.eye(3), -torch.eye(3)]))
    assert effective_rank(line.first / 2, line.second / 2) == pytest.approx(1)
    assert effective_rank(even.first / 6, even.second / 6) == pytest.approx(3)
    same = moments(torch.tensor([[1.0, 0], [1.0, 0]]))
    assert math.isnan(effective_rank(same.first / 2, same.second / 2))
    gone = moments(torch.full((2, 3), torch.nan))
    assert math.isnan(effective_rank(gone.first / 2, gone.second / 2)), "a diverged network does not stop its own validation"
