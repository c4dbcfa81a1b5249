"""When checkpoints are written, and which are kept."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lmlab.budget import Spent
from lmlab.callbacks.budget import clock_of
from lmlab.checkpoint import outline
from lmlab.checkpoint.places import link, remove, sweep
from lmlab.errors import DamagedError
from lmlab.run.directory import step_files

log = logging.getLogger(__name__)


class Checkpoints(Checkpoint):
    """Writes `step=N.ckpt` at even marks of the budget and at its end; `best.ckpt` is the one with the lowest `val/loss`.

    Always between two optimiser steps, and after the validation of the step if there is one, so that a resumed run repeats
    nothing and misses nothing.

    Args:
        folder: Where to write: a run's `checkpoints`.
        times: Checkpoints over the whole budget.
        every_steps: Write every so many optimiser steps as well.
        keep: How many step checkpoints to keep; the best is kept besides. None keeps all.
        monitor: Metric that decides which is best; lower is better.
    """

    def __init__(
        self, folder: str | Path, times: int = 10, every_steps: int | None = None, keep: int | None = 2, monitor: str = "val/loss"
    ) -> None:
        """Nothing is written yet."""
        self.folder, self.times, self.every_steps, self.keep, self.monitor = Path(folder), times, every_steps, keep, monitor
        self.best_score, self.best_step = math.inf, 0
        self._before = Spent()
        self._due, self._saved_step = False, -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Removes what a killed run left half-written."""
        if stage == "fit" and trainer.is_global_zero and self.folder.is_dir():
            sweep(self.folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes where the run begins; if its last process died between saving its best and calling it so, that is made up for."""
        self._before = clock_of(pl_module).spent
        target = self._path(trainer.global_step)
        if trainer.is_global_zero and self.best_step == trainer.global_step and target.exists() and not self._has_best():
            link(target, self._best_path)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves if a mark was passed; if a validation comes first, waits for it."""
        if not batch["window"].is_last:
            return
        meter = clock_of(pl_module)
        self._due = meter.config.is_due(self.times, self._before, meter.spent) or trainer.should_stop
        self._due = self._due or bool(self.every_steps and trainer.global_step % self.every_steps == 0)
        self._before = meter.spent
        validates = trainer.enable_validation and (trainer.val_check_batch == 1 or trainer.should_stop)
        if self._due and not validates:
            self.save(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what is due, the best so far, and the end, which a callback such as EarlyStopping may have called just now."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        score = trainer.callback_metrics.get(self.monitor)
        is_best = score is not None and float(score) < self.best_score
        if score is not None and is_best:
            self.best_score, self.best_step = float(score), trainer.global_step
        if self._due or is_best or trainer.should_stop:
            self.save(trainer, pl_module, is_best=is_best)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hands the best checkpoint, else the last, to loggers that keep models."""
        best, steps = self._best_path, list(step_files(self.folder).values())
        for logger in trainer.loggers if trainer.is_global_zero else ():
            send = getattr(logger, "log_checkpoint", None)
            if send is not None and (best.exists() or steps):
                send(best if best.exists() else steps[-1], ["best" if best.exists() else "last"])

    def save(self, trainer: Trainer, pl_module: LightningModule, is_best: bool = False) -> None:
        """Writes a checkpoint, if there is none of this step yet, and drops those no longer kept; its time does not count as training.

        Args:
            trainer: The trainer.
            pl_module: The objective.
            is_best: Whether it becomes `best.ckpt` as well.
        """
        self._due = False
        if self._saved_step == trainer.global_step and not is_best:
            return
        self._saved_step, target = trainer.global_step, self._path(trainer.global_step)
        with clock_of(pl_module).paused():
            trainer.save_checkpoint(target)
            if trainer.is_global_zero:
                if is_best:
                    link(target, self._best_path)
                written = [path for step, path in step_files(self.folder).items() if step <= trainer.global_step]
                for old in written[: -self.keep] if self.keep else ():
                    remove(old)

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, and the number of threads, on which the last bit of a sum depends."""
        return {"best_score": self.best_score, "best_step": self.best_step, "num_threads": torch.get_num_threads()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the best score, and computes with as many threads as before."""
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]
        if state_dict["num_threads"] != torch.get_num_threads():
            log.info("going on with %d threads, as before, instead of %d", state_dict["num_threads"], torch.get_num_threads())
            torch.set_num_threads(state_dict["num_threads"])

    @property
    def _best_path(self) -> Path:
        return self.folder / "best.ckpt"

    def _path(self, step: int) -> Path:
        return self.folder / f"step={step:07d}.ckpt"

    def _has_best(self) -> bool:
        """Whether `best.ckpt` is what it should be."""
        try:
            return self._best_path.exists() and outline(self._best_path).get("global_step") == self.best_step
        except DamagedError:
            return False
