"""The run's clock: counts what is spent in every unit, says when to validate and when to stop."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lmlab.budget import BudgetConfig, Spent
from lmlab.config import to_plain
from lmlab.data.loader import Window
from lmlab.errors import BudgetError, ConfigError
from lmlab.objectives.base import Objective
from lmlab.ranks import sum_over_data

FIRST_STEP_SECONDS = 0.1
"""What a step is taken to last before one has been measured."""


def objective_of(module: LightningModule) -> Objective:
    """The module as what lmlab's callbacks work on.

    Args:
        module: What the trainer trains.

    Raises:
        ConfigError: If it is no objective.
    """
    if not isinstance(module, Objective):
        raise ConfigError(
            f"{type(module).__name__} is no objective", where="model", remedy="derive it from lmlab.objectives.base.Objective"
        )
    return module


def clock_of(module: LightningModule) -> Budget:
    """The clock of the run that trains a module.

    Args:
        module: What the trainer trains.

    Raises:
        ConfigError: If the run has no budget.
    """
    clock = objective_of(module).meter
    if not isinstance(clock, Budget):
        raise ConfigError(
            "the run has no budget", where="trainer.callbacks", remedy="add lmlab.callbacks.Budget(BudgetConfig(steps=...)), first"
        )
    return clock


class Budget(Callback):
    """Ends the run when its budget is spent.

    Training seconds are those between windows: reading data, forward, backward and step; not validation, samples or checkpoints.
    The decision falls after a whole window, so a run overshoots by at most one optimiser step.

    Args:
        config: How much of what may be spent, and how often to validate on the way.
    """

    def __init__(self, config: BudgetConfig) -> None:
        """Starts with nothing spent."""
        self.config = config
        self.spent = Spent()
        self._flops = 0
        self._mark: float | None = None
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=50)

    @property
    def progress(self) -> float:
        """Share of the budget spent, in [0, 1]."""
        return self.config.progress(self.spent)

    def progress_within(self, window: Window, world_size: int, flops: int) -> float:
        """Share of the budget that will be spent in the middle of a window, in [0, 1].

        It is the schedule's clock: at the beginning of a window the first step would be taken at rate 0, at its end the last one.

        Args:
            window: The window about to begin.
            world_size: Ranks with a share like this one's.
            flops: Of the window, on this rank.
        """
        spent = getattr(self.spent, self.config.unit)
        if self.config.unit == "seconds":
            cost = spent / self.spent.steps if self.spent.steps else FIRST_STEP_SECONDS
        else:
            cost = {"steps": 1, "tokens": window.tokens * world_size, "flops": flops * world_size}[self.config.unit]
        return (spent + min(spent + cost, self.config.limit)) / 2 / self.config.limit

    @property
    def tokens_per_second(self) -> float:
        """Raw corpus tokens per second of training, over the latest windows, all ranks together."""
        return self._rate(1)

    @property
    def flops_per_second(self) -> float:
        """FLOPs per second of training, over the latest windows, all ranks together."""
        return self._rate(2)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Whatever happens inside does not count as training time."""
        since = time.perf_counter()
        try:
            yield
        finally:
            if self._mark is not None:
                self._mark += time.perf_counter() - since

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes itself known to the objective and refuses Lightning's own limits."""
        objective_of(pl_module).meter = self
        if stage == "fit" and self.config.validations == 0:
            trainer.limit_val_batches = 0  # else Lightning validates once more when the run ends
        if stage == "fit" and trainer.max_steps != -1:
            raise BudgetError(
                f"trainer.max_steps = {trainer.max_steps} beside a budget",
                where="trainer.max_steps",
                why="two rules for one end; the schedule follows the budget",
                remedy=f"set budget.steps: {trainer.max_steps} and leave trainer.max_steps out",
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock; a run that has spent its budget already stops at once."""
        self._mark = time.perf_counter()
        if self.config.is_exhausted(self.spent):
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts a micro-batch; after the last of a window, decides on validation and on the end."""
        window: Window = batch["window"]
        self._flops += objective_of(pl_module).flops(batch)
        if not window.is_last:
            return
        before = self.spent
        tokens, supervised, flops = self._over_ranks(trainer, [window.tokens, window.supervised, self._flops])
        if self.config.unit == "flops" and not flops:
            raise BudgetError(
                f"a step of {type(pl_module).__name__} takes no FLOPs",
                where="budget.flops",
                why="a budget in FLOPs would never be spent",
                remedy="set budget.tokens instead",
            )
        now = time.perf_counter()
        seconds = now - (self._mark or now)
        if trainer.world_size > 1:
            seconds = trainer.strategy.broadcast(seconds)  # rank 0's clock decides for all
        self._mark, self._flops = now, 0
        self._recent.append((seconds, tokens, flops))
        self.spent = self.spent + Spent(
            steps=1,
            examples=window.position - self.spent.examples,
            tokens=tokens,
            supervised_tokens=supervised,
            flops=flops,
            seconds=seconds,
        )
        # Lightning looks at this number after every batch: 1 means now, infinity means not now
        trainer.val_check_batch = 1 if self.config.is_due(self.config.validations, before, self.spent) else float("inf")
        trainer.should_stop = trainer.should_stop or self.config.is_exhausted(self.spent)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # pyright: ignore[reportAttributeAccessIssue]  set by a connector
            pl_module.log_dict({"perf/tokens_per_second": self.tokens_per_second, "perf/flops_per_second": self.flops_per_second})
            units = ("tokens", "supervised_tokens", "flops", "seconds")
            for logger in trainer.loggers:  # given to them directly: `log` would make float32 of every count
                logger.log_metrics({f"budget/{unit}": getattr(self.spent, unit) for unit in units}, step=trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock for the time of the validation."""
        self._paused_at = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the clock go on."""
        if self._mark is not None:
            self._mark += time.perf_counter() - self._paused_at

    def state_dict(self) -> dict[str, Any]:
        """What was spent, for the checkpoint."""
        return {"spent": self.spent.to_plain(), "budget": to_plain(self.config)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what was spent."""
        self.spent = Spent.from_plain(state_dict["spent"])

    def _rate(self, column: int) -> float:
        seconds = sum(row[0] for row in self._recent)
        return sum(row[column] for row in self._recent) / seconds if seconds > 0 else 0.0

    def _over_ranks(self, trainer: Trainer, values: list[int]) -> list[int]:
        table = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
        return [int(v) for v in sum_over_data(trainer, table).tolist()]


def peak_memory() -> int:
    """Most memory this process has held so far, in bytes: on the device where there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        # `ru_maxrss` outlives an exec, and so may be that of the process that started this one
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):  # not Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
