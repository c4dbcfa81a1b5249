"""The window loader: a whole accumulation window is collated at once, so that its counts are known before the first backward.

What happens to an example:
1. `WindowSampler` names the positions n of one window of the *global* batch that belong to this rank, micro-batch by micro-batch.
2. `OrderedView` turns each n into an example: `example_at(n, size, seed)` says which one, the view builds it.
3. `WindowCollator` collates each micro-batch with the objective's collator (which corrupts by a pure function of seed, n and
   index), adds up the counts of the window, and stamps every micro-batch with them.
4. `WindowLoader` yields the micro-batches one by one.

No step keeps state: the batch at position n is the same whatever the number of workers, the world size or the accumulation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lmlab.data.batch import Batch, Collator, Example
from lmlab.data.order import example_at, hash64
from lmlab.errors import ConfigError

if TYPE_CHECKING:
    from lmlab.data.views import View

TRAIN_ORDER, DROPOUT = 0, 1  # streams of randomness that must not meet
EVAL_SEED = 0
"""Seed of the evaluation's corruption and pairs, the same in every run, so that runs can be compared."""


class Window(NamedTuple):
    """The stamp on a micro-batch: where it stands in its accumulation window.

    Args:
        counts: Terms per part over this rank's share of the window, (1,) int64 each.
        tokens: Raw corpus tokens in this rank's share of the window.
        supervised: Labelled tokens in this rank's share of the window.
        index: Which micro-batch of the window this is.
        size: Micro-batches in the window on this rank.
        position: Examples consumed by all ranks once this window is done.
        micro_size: Examples of a forward pass: fewer than this batch has where the loss is over the batch.
        seed: For dropout; a function of the run's seed and the position of the first example of the micro-batch.
    """

    counts: dict[str, Tensor]
    tokens: int
    supervised: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  nobody looks a window up in itself
    size: int
    position: int
    micro_size: int
    seed: int

    @property
    def is_first(self) -> bool:
        """Whether no backward of the window has run yet."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether the optimiser steps after this micro-batch."""
        return self.index == self.size - 1


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How the global batch is cut: `global_size = micro_size * world_size * micro-batches per window`.

    Args:
        global_size: Examples per optimiser step, over all ranks.
        micro_size: Examples per forward pass on one rank.
        rank: This rank among the data-parallel ranks.
        world_size: Data-parallel ranks.
        loss_over: `batch` keeps this rank's share of a window in one piece.
    """

    global_size: int
    micro_size: int
    rank: int = 0
    world_size: int = 1
    loss_over: Literal["examples", "batch"] = "examples"

    def __post_init__(self) -> None:
        """Checks that the cut comes out even."""
        per_pass = self.micro_size * self.world_size
        if min(self.global_size, self.micro_size) < 1 or self.global_size % per_pass:
            raise ConfigError(
                f"a global batch of {self.global_size} cannot be cut into micro-batches of {self.micro_size} on {self.world_size} rank(s)",
                where="data.global_batch_size, data.micro_batch_size",
                why="global_batch_size must be a multiple of micro_batch_size times the number of ranks",
                remedy=f"set data.global_batch_size to {max(1, round(self.global_size / max(1, per_pass))) * max(1, per_pass)}",
            )

    @property
    def num_micro(self) -> int:
        """Batches per window on each rank: the gradient accumulation."""
        return self.global_size // (self.batch_size * self.world_size)

    @property
    def batch_size(self) -> int:
        """Examples in one of them."""
        return self.micro_size if self.loss_over == "examples" else self.global_size // self.world_size

    def positions(self, window: int) -> list[int]:
        """Positions of this rank's examples in a window, in the order in which they are consumed.

        Args:
            window: Running number of the window, which is the optimiser step.
        """
        start, stride = window * self.global_size, self.micro_size * self.world_size
        first = range(start + self.rank * self.micro_size, start + self.global_size, stride)
        return [n for begin in first for n in range(begin, begin + self.micro_size)]


def deal(num_examples: int, plan: BatchPlan, rank: int) -> list[list[int]]:
    """Which evaluation examples a rank sees in which batch.

    Where the loss is over a batch, batches are those of one rank alone, whole ones only, dealt out in turn: then the number of ranks
    does not decide what is compared.

    Args:
        num_examples: Of the evaluation.
        plan: How batches are cut.
        rank: Of the data-parallel ranks.
    """
    if plan.loss_over == "batch":
        whole = max(num_examples // plan.global_size, 1) * plan.global_size
        batches = [list(range(i, min(i + plan.global_size, num_examples))) for i in range(0, whole, plan.global_size)]
        return batches[rank :: plan.world_size]
    share = range(rank, num_examples, plan.world_size)
    return [list(share[i : i + plan.micro_size]) for i in range(0, len(share), plan.micro_size)]


class WindowSampler(Sampler[list[int]]):
    """Yields the positions of one window after another, without end.

    Args:
        plan: How the global batch is cut.
        start: The first window.
    """

    def __init__(self, plan: BatchPlan, start: int) -> None:
        self.plan, self.start = plan, start

    def __iter__(self) -> Iterator[list[int]]:
        """Positions, micro-batch after micro-batch."""
        window = self.start
        while True:
            yield self.plan.positions(window)
            window += 1


class OrderedView(Dataset[Example]):
    """A view in the order of the run: item n is the n-th example since the start.

    Args:
        view: The examples.
        seed: Seed of the run; None keeps the view's own order, as in evaluation.
        limit: Use only this many examples, evenly spread over the view; None for all. Only in evaluation.
    """

    def __init__(self, view: View, seed: int | None, limit: int | None = None) -> None:
        self.view, self.seed = view, seed
        self.size = len(view) if limit is None else min(limit, len(view))

    def __len__(self) -> int:
        """Examples in one pass."""
        return self.size

    def __getitem__(self, position: int) -> Example:
        """The example at a position of the run."""
        if self.seed is None:
            index = position * len(self.view) // self.size
        else:
            index = example_at(position, len(self.view), hash64(self.seed, TRAIN_ORDER))
        return self.view.draw(index, position, EVAL_SEED if self.seed is None else self.seed)


@dataclass(frozen=True)
class WindowCollator:
    """Collates the examples of a window into stamped micro-batches.

    Args:
        collate: The objective's collator.
        plan: How the global batch is cut.
        seed: Seed of the run.
    """

    collate: Collator
    plan: BatchPlan
    seed: int

    def __call__(self, examples: Sequence[Example]) -> list[Batch]:
        """One batch for each micro-batch of the window, each with its `Window` under the key `window`."""
        size = self.plan.batch_size
        groups = [examples[i : i + size] for i in range(0, len(examples), size)]
        batches = [self.collate(group, self.seed) for group in groups]
        counts = {part: torch.stack([b["counts"][part] for b in batches]).sum(0) for part in batches[0]["counts"]}
        tokens = sum(int(b["tokens"]) for b in batches)
        supervised = sum(int(b["num_labelled"] if "num_labelled" in b else sum(b["counts"].values())) for b in batches)
        position = (examples[0].position // self.plan.global_size + 1) * self.plan.global_size
        for index, (batch, group) in enumerate(zip(batches, groups, strict=True)):
            seed = hash64(self.seed, DROPOUT, group[0].position)
            batch["window"] = Window(counts, tokens, supervised, index, len(batches), position, self.plan.micro_size, seed)
        return batches


@dataclass(frozen=True)
class EvalCollator:
    """Collates evaluation examples: corruption is frozen, because position and seed do not change from pass to pass.

    Args:
        collate: The objective's evaluation collator.
        seed: Of the evaluation's corruption.
    """

    collate: Collator
    seed: int = EVAL_SEED

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """One batch."""
        return self.collate(examples, self.seed)


class WindowLoader:
    """Yields the micro-batches of each window one by one, from any window on.

    Args:
        view: Training examples in the order of the run.
        collator: Makes stamped micro-batches.
        start: The first window: the number of optimiser steps done before.
        num_workers: Processes that prepare windows ahead; 0 prepares them in this process.
    """

    def __init__(self, view: OrderedView, collator: WindowCollator, start: int, num_workers: int) -> None:
        self._windows = DataLoader(
            view,
            batch_sampler=WindowSampler(collator.plan, start),
            collate_fn=collator,
            num_workers=num_workers,
            # a generator of its own: otherwise the loader draws its base seed from the global stream and shifts dropout
            generator=torch.Generator().manual_seed(0),
        )

    def __iter__(self) -> Iterator[Batch]:
        """Micro-batches, without end."""
        for window in self._windows:
            yield from window


class EvalLoader:
    """Evaluation batches, the same on every pass. Not a DataLoader itself: Lightning would put a sampler of its own into one.

    Args:
        view: Examples in the view's own order.
        collator: Makes batches.
        batches: Positions of the examples of each batch.
        num_fillers: Further batches, of the first example and marked `is_filler`, that make up the number of passes of other ranks.
    """

    def __init__(self, view: OrderedView, collator: EvalCollator, batches: list[list[int]], num_fillers: int = 0) -> None:
        self._num_real = len(batches)
        self._loader = DataLoader(view, batch_sampler=[*batches, *([[0]] * num_fillers)], collate_fn=collator)

    def __iter__(self) -> Iterator[Batch]:
        """Batches in order."""
        for number, batch in enumerate(self._loader):
            yield batch if number < self._num_real else {**batch, "is_filler": True}

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._loader)
