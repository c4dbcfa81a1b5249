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

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lmlab.data.batch import Batch, Collator, Example
from lmlab.data.order import example_at, hash64
from lmlab.data.plan import BatchPlan

if TYPE_CHECKING:
    from lmlab.data.views import View

TRAIN_ORDER, DROPOUT, WINDOW_DRAW = 0, 1, 11  # streams of randomness that must not meet
EVAL_SEED = 0
"""Seed of the evaluation's corruption and pairs, the same in every run, so that runs can be compared."""


ASKS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
"""Signals that ask a run to save and stop. Job scripts often choose SIGUSR1."""


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
        draw: 64 random bits of the window, the same in all its micro-batches and on all ranks.
    """

    counts: dict[str, Tensor]
    tokens: int
    supervised: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  nobody looks a window up in itself
    size: int
    position: int
    micro_size: int
    seed: int
    draw: int = 0

    @property
    def is_first(self) -> bool:
        """Whether no backward of the window has run yet."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether the optimiser steps after this micro-batch."""
        return self.index == self.size - 1


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

    def sampler(self, start: int) -> WindowSampler:
        """Positions of one window after another.

        Args:
            start: The first window.
        """
        return WindowSampler(self.plan, start)

    def __call__(self, examples: Sequence[Example]) -> list[Batch]:
        """One batch for each micro-batch of the window, each with its `Window` under the key `window`."""
        size = self.plan.batch_size
        groups = [examples[i : i + size] for i in range(0, len(examples), size)]
        batches = [self.collate(group, self.seed) for group in groups]
        window = examples[0].position // self.plan.global_size
        seeds = [hash64(self.seed, DROPOUT, group[0].position) for group in groups]
        return stamp(batches, seeds, (window + 1) * self.plan.global_size, self.plan.micro_size, hash64(self.seed, WINDOW_DRAW, window))


def stamp(batches: list[Batch], seeds: Sequence[int], position: int, micro_size: int, draw: int) -> list[Batch]:
    """Writes the window into each of its micro-batches.

    Args:
        batches: Of one window; not all need have the same parts.
        seeds: For dropout, one for each.
        position: Examples consumed by all ranks once the window is done.
        micro_size: Examples of a forward pass.
        draw: Random bits of the window.
    """
    counts: dict[str, Tensor] = {}
    for batch in batches:
        for part, count in batch["counts"].items():
            counts[part] = counts[part] + count if part in counts else count
    tokens = sum(int(b["tokens"]) for b in batches)
    supervised = sum(num_labelled(b) for b in batches)
    for index, (batch, seed) in enumerate(zip(batches, seeds, strict=True)):
        batch["window"] = Window(counts, tokens, supervised, index, len(batches), position, micro_size, seed, draw)
    return batches


def num_labelled(batch: Batch) -> int:
    """Labelled tokens of a batch.

    Args:
        batch: What a collator made.
    """
    return int(batch["num_labelled"] if "num_labelled" in batch else sum(batch["counts"].values()))


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


class WindowMaker(Protocol):
    """Says what a window consists of, and makes micro-batches of it."""

    def sampler(self, start: int) -> Sampler[Any]:
        """What to look up for one window after another, without end.

        Args:
            start: The first window.
        """
        ...

    def __call__(self, examples: Any) -> list[Batch]:
        """The micro-batches of a window, each with its `Window` under the key `window`.

        Args:
            examples: What was found there.
        """
        ...


class WindowLoader:
    """Yields the micro-batches of each window one by one, from any window on.

    Args:
        view: Training examples in the order of the run.
        collator: Makes stamped micro-batches.
        start: The first window: the number of optimiser steps done before.
        num_workers: Processes that prepare windows ahead; 0 prepares them in this process.
    """

    def __init__(self, view: Dataset[Any], collator: WindowMaker, start: int, num_workers: int) -> None:
        self._windows = DataLoader(
            view,
            batch_sampler=collator.sampler(start),
            collate_fn=collator,
            num_workers=num_workers,
            worker_init_fn=_stay if num_workers else None,
            # a generator of its own: otherwise the loader draws its base seed from the global stream and shifts dropout
            generator=torch.Generator().manual_seed(0),
        )

    def __iter__(self) -> Iterator[Batch]:
        """Micro-batches, without end."""
        for window in self._windows:
            yield from window


def _stay(worker: int) -> None:
    """Lets a worker outlive what asks a run to stop and reaches each of its processes: the step is to be finished and saved first.

    Not so a second SIGTERM, by which multiprocessing ends workers that have not left by themselves.
    """
    for number in ASKS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))


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
