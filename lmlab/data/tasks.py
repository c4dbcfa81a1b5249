"""Feeding several objectives at once: their views, their windows, their evaluation.

Each task reads its own view at its own position, in an order of its own: a task sees all its examples once before it sees one twice,
whatever the others do, and adding a task to a run does not change what the others read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.utils.data import Dataset, Sampler

from lmlab.data.batch import Batch, Example, Feed
from lmlab.data.loader import DROPOUT, WINDOW_DRAW, EvalLoader, OrderedView, num_labelled, stamp
from lmlab.data.order import hash64
from lmlab.data.plan import BatchPlan
from lmlab.data.task_order import TaskOrder, TaskSampling

if TYPE_CHECKING:
    from lmlab.data.views import View

TASK_SEED = 12  # stream of randomness


@dataclass(frozen=True, kw_only=True)
class TaskFeeds(Mapping[str, Feed]):
    """What several objectives want to be fed, by name.

    Args:
        feeds: By task.
        sampling: Which tasks a step trains on.
    """

    feeds: dict[str, Feed]
    sampling: TaskSampling = field(default_factory=TaskSampling)

    def __getitem__(self, task: str) -> Feed:
        """The feed of a task."""
        return self.feeds[task]

    def __iter__(self) -> Iterator[str]:
        """Names of the tasks."""
        return iter(self.feeds)

    def __len__(self) -> int:
        """Number of tasks."""
        return len(self.feeds)


def task_seed(seed: int, task: str) -> int:
    """The seed of a task's order and corruption; it depends on no other task.

    Args:
        seed: Of the run.
        task: Its name.
    """
    return hash64(seed, TASK_SEED, *task.encode())


def nested_batch(batches: Mapping[str, Batch]) -> Batch:
    """One batch of the batches of several objectives.

    Args:
        batches: By the name of the task; none at all in a micro-batch that only makes up the number.

    Returns:
        Batch with `tasks`, the batches by name, `counts` by `task/part`, and the sums of their accounts.
    """
    counts = {f"{task}/{part}": count for task, batch in batches.items() for part, count in batch["counts"].items()}
    tokens = sum(int(batch["tokens"]) for batch in batches.values())
    labelled = sum(num_labelled(batch) for batch in batches.values())
    return {"tasks": dict(batches), "counts": counts, "tokens": torch.tensor([tokens]), "num_labelled": torch.tensor([labelled])}


class Place(NamedTuple):
    """Where an example of a window comes from.

    Args:
        window: Running number of the window.
        task: Running number of the task.
        position: n, how many examples of this task came before it.
    """

    window: int
    task: int
    position: int


class TaskViews(Dataset[tuple[Place, Example]]):
    """The views of several tasks, one after the other; as a data set of places, each in the order of the run.

    Args:
        views: By task.
        seed: Of the run.
    """

    def __init__(self, views: Mapping[str, View], seed: int) -> None:
        self.views = dict(views)
        self._ordered = [OrderedView(view, task_seed(seed, task)) for task, view in self.views.items()]

    def __len__(self) -> int:
        """Examples of all tasks together."""
        return sum(len(view) for view in self.views.values())

    def __getitem__(self, place: Place) -> tuple[Place, Example]:
        """The example at a place, and the place."""
        return place, self._ordered[place.task][place.position]


class TaskSampler(Sampler[list[Place]]):
    """Yields the places of one window after another on this rank, without end.

    Args:
        order: Which tasks a window has.
        plans: How the global batch of each task is cut.
        start: The first window.
    """

    def __init__(self, order: TaskOrder, plans: Sequence[BatchPlan], start: int) -> None:
        self.order, self.plans, self.start = order, plans, start

    def __iter__(self) -> Iterator[list[Place]]:
        """Places, task after task."""
        window, done = self.start, self.order.done(self.start)
        while True:
            tasks = self.order.tasks(window)
            yield [Place(window, task, n) for task in tasks for n in self.plans[task].positions(done[task])]
            for task in tasks:
                done[task] += 1
            window += 1


@dataclass(frozen=True)
class TaskCollator:
    """Collates the examples of a window into stamped micro-batches, each of which holds a batch of every task of the window.

    All windows have as many micro-batches: those of the task that has most. A task whose loss is over a whole batch has its one batch in
    the first.

    Args:
        feeds: By task.
        plans: How the global batch of each task is cut.
        order: Which tasks a window has.
    """

    feeds: Mapping[str, Feed]
    plans: tuple[BatchPlan, ...]
    order: TaskOrder

    def sampler(self, start: int) -> TaskSampler:
        """Places of one window after another.

        Args:
            start: The first window.
        """
        return TaskSampler(self.order, self.plans, start)

    def __call__(self, examples: Sequence[tuple[Place, Example]]) -> list[Batch]:
        """One batch for each micro-batch of the window, each with its `Window` under the key `window`."""
        seed, window = self.order.seed, examples[0][0].window
        parts: list[dict[str, Batch]] = [{} for _ in range(max(plan.num_micro for plan in self.plans))]
        seeds = [hash64(seed, DROPOUT, window, -1 - index) for index in range(len(parts))]
        for number, (task, feed) in enumerate(self.feeds.items()):
            mine = [(place.position, example) for place, example in examples if place.task == number]
            size = self.plans[number].batch_size
            for index, begin in enumerate(range(0, len(mine), size)):
                group = mine[begin : begin + size]
                if not parts[index]:
                    seeds[index] = hash64(seed, DROPOUT, window, group[0][0])
                parts[index][task] = feed.collate([example for _, example in group], task_seed(seed, task))
        position = (window + 1) * self.order.examples_per_window
        batches = [nested_batch(part) for part in parts]
        return stamp(batches, seeds, position, self.plans[0].micro_size, hash64(seed, WINDOW_DRAW, window))


class TaskEvalLoader:
    """Evaluation batches of all tasks in turn, each nested as if it were a window's: the same on every pass.

    Args:
        loaders: By task.
    """

    def __init__(self, loaders: Mapping[str, EvalLoader]) -> None:
        self._loaders = dict(loaders)

    def __iter__(self) -> Iterator[Batch]:
        """One batch of each task in turn, until all are through."""
        streams = {task: iter(loader) for task, loader in self._loaders.items()}
        while streams:
            for task in list(streams):
                batch = next(streams[task], None)
                if batch is None:
                    del streams[task]
                    continue
                filler = {"is_filler": True} if "is_filler" in batch else {}
                yield {**nested_batch({task: batch}), **filler}

    def __len__(self) -> int:
        """Number of batches."""
        return sum(len(loader) for loader in self._loaders.values())
