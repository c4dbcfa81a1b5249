"""Writes the run's record and, at its end, its report."""

from __future__ import annotations

import dataclasses
import logging
import statistics
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lmlab.budget import Spent, describe
from lmlab.callbacks.budget import peak_memory
from lmlab.errors import LabError
from lmlab.run.directory import RunDirectory
from lmlab.run.record import Record
from lmlab.run.record import now

log = logging.getLogger(__name__)


class Recording(Callback):
    """Keeps `record.json` true from the first step to the last, and builds `report.html`.

    Args:
        run: The run's folder.
        record: What is known before the start: name, seed, question, config hash.
    """

    def __init__(self, run: RunDirectory, record: Record) -> None:
        """Nothing is written before training starts."""
        self.run, self.record = run, record
        self._rates: list[float] = []
        self._best: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Marks the run as running."""
        data = trainer.datamodule.fingerprints() if hasattr(trainer.datamodule, "fingerprints") else {}
        self.record = dataclasses.replace(
            self.record,
            status="running",
            started=self.record.started or now(),
            data={name.removesuffix("_fingerprint"): value for name, value in data.items()},
            objective=pl_module.recipe()["class_path"],
            num_parameters=sum(p.numel() for p in pl_module.parameters()),
        )
        self._save(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes metrics and what is spent so far."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        score = trainer.callback_metrics.get("val/loss")
        if score is not None and float(score) < self._best.get("val/loss", float("inf")):
            self._best = {"step": trainer.global_step, "val/loss": float(score)}
        self._rates.append(pl_module.meter.tokens_per_second)
        self._save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Marks the run as finished."""
        if pl_module.meter.progress >= 1:
            self._finish(trainer, pl_module, "finished")
            log.info("spent: %s", describe(pl_module.meter.spent))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Marks the run as interrupted or failed, and says why."""
        stopped = isinstance(exception, (KeyboardInterrupt, SystemExit))
        what = exception.what if isinstance(exception, LabError) else f"{type(exception).__name__}: {exception}"
        self.record = dataclasses.replace(self.record, error="" if stopped else what)
        self._finish(trainer, pl_module, "interrupted" if stopped else "failed")

    def state_dict(self) -> dict[str, Any]:
        """The best validation so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the best validation."""
        self._best = state_dict["best"]

    def _finish(self, trainer: Trainer, pl_module: LightningModule, status: Any) -> None:
        self.record = dataclasses.replace(self.record, status=status, ended=now())
        self._save(trainer, pl_module)
        if trainer.is_global_zero:
            from lmlab.run.report import write_report

            write_report(self.run)

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        spent: Spent = pl_module.meter.spent if pl_module.meter else Spent()
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k != "step"}
        self.record = dataclasses.replace(
            self.record,
            spent={**spent.to_plain(), "peak_memory_bytes": peak_memory()},
            metrics=metrics,
            best=self._best,
            tokens_per_second=statistics.median(self._rates) if self._rates else None,
        )
        self.record.save(self.run.record_path)
