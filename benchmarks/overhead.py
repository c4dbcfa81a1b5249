"""What a whole run costs beside its mathematics: `lmlab.training.fit` against a loop written by hand, on the same data."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.peers import objective
from benchmarks.sizes import Size
from benchmarks.timing import Seconds
from lmlab.backbones import BackboneConfig
from lmlab.budget import BudgetConfig
from lmlab.data.module import CorpusModule
from lmlab.objectives.base import Objective
from lmlab.objectives.clm import CLM
from lmlab.optim import OptimizerConfig
from lmlab.session import RunConfig
from lmlab.tokenizer import Tokenizer
from lmlab.training import fit

CLIP = 1.0


class _ByHand(Callback):
    """Between two steps of a run, steps of the hand-written loop: the two never run far apart in time.

    Args:
        loop: Yields after each hand-written step.
        calls: Steps in a turn.
        clock: As in `benchmarks.timing.interleave`.
    """

    def __init__(self, loop: Iterator[None], calls: int, clock: Callable[[], float]) -> None:
        self.loop, self.calls, self.clock = loop, calls, clock
        self.seconds: Seconds = {"fit": [], "by hand": []}
        self._mark = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        next(self.loop)
        self._mark = self.clock()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.calls:
            return
        first = self.clock()
        for _ in range(self.calls):
            next(self.loop)
        second = self.clock()
        if trainer.global_step > self.calls:  # the first turn warms up
            self.seconds["fit"].append((first - self._mark) / self.calls)
            self.seconds["by hand"].append((second - first) / self.calls)
        self._mark = self.clock()


def measure_overhead(
    corpus: str, tokenizer: Tokenizer, size: Size, rounds: int, calls: int = 2, clock: Callable[[], float] = time.perf_counter
) -> Seconds:
    """Seconds per step of `fit`, with loader, standard callbacks, log and records, and of a loop by hand, in turns.

    Both collate in the same process, train the default backbone as a causal language model in bf16, and clip gradients. Validation,
    checkpoints and the report are left out: they happen a few times in a run, and the budget does not count them.

    Args:
        corpus: What to learn from.
        tokenizer: Of the corpus.
        size: Of the network.
        rounds: Turns.
        calls: Steps in a turn.
        clock: As in `benchmarks.timing.interleave`.
    """
    backbone = BackboneConfig(hidden_size=size.hidden, num_layers=size.layers, num_heads=size.heads)
    trained = CLM(tokenizer, backbone, OptimizerConfig(), length=size.length)
    twin = objective("clm", backbone, tokenizer, size)
    turns = _ByHand(_loop(twin, _data(twin, corpus, tokenizer, size)), calls, clock)
    steps = (rounds + 1) * calls
    with tempfile.TemporaryDirectory() as root, _quiet():
        fit(
            trained,
            _data(trained, corpus, tokenizer, size),
            BudgetConfig(steps=steps, validations=1, checkpoints=1),
            RunConfig(name="benchmark", root=root),
            precision="bf16-mixed",
            callbacks=[turns],
            trainer={"enable_progress_bar": False, "accelerator": "cpu", "devices": 1, "limit_val_batches": 1},
        )
    return turns.seconds


def _data(made: Objective, corpus: str, tokenizer: Tokenizer, size: Size) -> CorpusModule:
    return CorpusModule(corpus, tokenizer, made.feed(), global_batch_size=size.batch)


def _loop(made: Objective, data: CorpusModule) -> Iterator[None]:
    optimizer = OptimizerConfig().build(made.named_parameters())
    for batch in data.train_dataloader():
        with torch.autocast("cpu", torch.bfloat16):
            losses = made({key: value for key, value in batch.items() if key != "window"})
        losses.total({name: part.count for name, part in losses.parts.items()}).backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """A table is to be printed, not Lightning's greetings; and the global settings of a run end with it."""
    log = logging.getLogger("lightning.pytorch")
    level, deterministic = log.level, torch.are_deterministic_algorithms_enabled()
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
        torch.use_deterministic_algorithms(deterministic)
