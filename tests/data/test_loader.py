"""The window loader: the same examples whatever the cut, the workers and the starting point."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.data.batch import Batch, Example
from lmlab.data.loader import BatchPlan, EvalCollator, OrderedView, WindowCollator, WindowLoader
from lmlab.errors import ConfigError

SIZE = 23  # prime: windows never line up with epochs


class Numbers:
    """A view whose example i is the number i."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Example:
        return Example(0, index, np.array([index]), np.zeros(1, np.int64), 1 + index % 3)

    def draw(self, index: int, position: int, seed: int) -> Example:
        return self[index]._replace(position=position)


class Ragged:
    """Counts differ from example to example."""

    def __call__(self, examples: Sequence[Example], seed: int) -> Batch:
        return {
            "input_ids": torch.tensor([[e.index, e.position] for e in examples]),
            "counts": {"a": torch.tensor([sum(e.index for e in examples)]), "b": torch.tensor([len(examples)])},
            "tokens": torch.tensor([sum(e.num_raw_tokens for e in examples)]),
        }


def batches(global_size: int, micro: int, world: int = 1, rank: int = 0, start: int = 0, workers: int = 0, num: int = 1) -> list[Batch]:
    plan = BatchPlan(global_size=global_size, micro_size=micro, rank=rank, world_size=world)
    loader = WindowLoader(OrderedView(Numbers(), seed=5), WindowCollator(Ragged(), plan, 5), start, workers)  # type: ignore[arg-type]
    return list(islice(loader, num * plan.num_micro))


def rows(found: Sequence[Batch]) -> list[list[int]]:
    return torch.cat([b["input_ids"] for b in found]).tolist()


@settings(max_examples=30, deadline=None)
@given(micro=st.sampled_from([1, 2, 4, 8]), world=st.sampled_from([1, 2]), start=st.integers(0, 40))
def test_every_cut_of_a_window_holds_the_same_examples_and_counts(micro: int, world: int, start: int) -> None:
    if 16 % (micro * world):
        return
    whole = batches(16, 16, start=start)[0]
    parts = [batches(16, micro, world, rank, start) for rank in range(world)]
    assert sorted(rows([b for rank in parts for b in rank])) == sorted(rows([whole]))
    for name in ("a", "b"):
        assert sum(rank[0]["window"].counts[name].item() for rank in parts) == whole["counts"][name].item()
    assert sum(rank[0]["window"].tokens for rank in parts) == int(whole["tokens"])
    assert all(b["window"].counts["a"] == rank[0]["window"].counts["a"] for rank in parts for b in rank)
    stamps = [(b["window"].index, b["window"].size, b["window"].position) for b in parts[0]]
    assert stamps == [(i, 16 // micro // world, (start + 1) * 16) for i in range(16 // micro // world)]


def test_an_epoch_shows_everything_once_and_the_next_in_another_order() -> None:
    seen = [row[0] for row in rows(batches(1, 1, num=3 * SIZE))]
    epochs = [seen[i : i + SIZE] for i in range(0, 3 * SIZE, SIZE)]
    assert all(sorted(e) == list(range(SIZE)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_starting_in_the_middle_and_using_workers_changes_nothing() -> None:
    straight = batches(4, 2, num=12)
    assert rows(straight)[5 * 4 :] == rows(batches(4, 2, start=5, num=7))
    assert rows(straight) == rows(batches(4, 2, workers=2, num=12))
    assert [b["window"].seed for b in straight] == [b["window"].seed for b in batches(4, 2, workers=2, num=12)]
    assert len({b["window"].seed for b in straight}) == len(straight)


def test_an_uneven_cut_is_refused_with_a_size_that_works() -> None:
    with pytest.raises(ConfigError, match="multiple") as caught:
        BatchPlan(global_size=10, micro_size=4, world_size=2)
    assert "global_batch_size to 8" in str(caught.value)
    for bad in ({"global_size": 0, "micro_size": 1}, {"global_size": 4, "micro_size": 0}):
        with pytest.raises(ConfigError):
            BatchPlan(**bad)


def test_evaluation_keeps_the_order_and_spreads_a_limit_over_the_view() -> None:
    view = OrderedView(Numbers(), seed=None, limit=5)  # type: ignore[arg-type]
    assert [view[i].index for i in range(len(view))] == [0, 4, 9, 13, 18]
    assert [view[i].position for i in range(len(view))] == list(range(5))
    assert len(OrderedView(Numbers(), seed=None, limit=99)) == SIZE  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(EvalCollator(Ragged()))).seed == 0
