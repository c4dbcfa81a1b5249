"""Splits: decided by the text alone, never sharing one, never empty where there are documents enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.data.store.splits import assign_splits, first_of_each

HASHES = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40)


@given(hashes=HASHES, repeats=st.lists(st.integers(0, 2), min_size=40, max_size=40))
def test_first_of_each_equals_a_walk_with_a_set(hashes: list[int], repeats: list[int]) -> None:
    hashes = [h % 7 for h in hashes]  # many copies
    pairs = list(zip(hashes, repeats, strict=False))
    expected = [pair not in pairs[:place] for place, pair in enumerate(pairs)]
    assert first_of_each(np.array(hashes, np.uint64), np.array(repeats[: len(hashes)])).tolist() == expected


@given(hashes=HASHES, shares=st.sampled_from([(0.05, 0.05), (0.0, 0.3), (0.3, 0.0), (0.5, 0.4), (0.0, 0.0)]), seed=st.integers(0, 9))
def test_no_text_is_shared_and_no_split_is_empty(hashes: list[int], shares: tuple[float, float], seed: int) -> None:
    splits = assign_splits(np.array(hashes, np.uint64), *shares, seed)
    by_split = [{h for h, s in zip(hashes, splits.tolist(), strict=True) if s == split} for split in range(3)]
    assert sum(map(len, by_split)) == len(set(hashes))
    wanted = [0] + [split for split, share in ((1, shares[0]), (2, shares[1])) if share]
    for split in wanted[: len(set(hashes))]:
        assert by_split[split]
    for split in {0, 1, 2} - set(wanted):
        assert not by_split[split]


def test_shares_hold_and_others_do_not_move_a_document() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    splits = assign_splits(hashes, 0.1, 0.05, seed=0)
    spread = 4 * np.sqrt(0.1 * 0.9 / len(hashes))  # four standard deviations of a binomial share
    assert np.mean(splits == 1) == pytest.approx(0.1, abs=spread)
    assert np.mean(splits == 2) == pytest.approx(0.05, abs=spread)
    assert np.array_equal(assign_splits(hashes[:5000], 0.1, 0.05, seed=0), splits[:5000])
    assert not np.array_equal(assign_splits(hashes, 0.1, 0.05, seed=1), splits)
