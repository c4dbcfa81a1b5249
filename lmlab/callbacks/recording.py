"""Writes the run's record and, at its end, its report."""

from __future__ import annotations

import dataclasses
import logging
import statistics
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lmlab.budget import Spent, describe
from lmlab.callbacks.budget import clock_of, objective_of, peak_memory
from lmlab.callbacks.peak import peak_flops, training_dtype
from lmlab.data.module import CorpusModule
from lmlab.errors import LabError
from lmlab.rulers.ngram import anchors_for
from lmlab.run.directory import RunDirectory
from lmlab.run.record import Record, now

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
        self._rates: list[tuple[float, float]] = []
        self._best: dict[str, float] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the anchors, before the run's clock starts."""
        module = getattr(trainer, "datamodule", None)
        if trainer.is_global_zero and isinstance(module, CorpusModule) and not self.record.anchors and trainer.limit_val_batches:
            reference = anchors_for(module)
            self.record = dataclasses.replace(self.record, anchors=reference._asdict() if reference else {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Marks the run as running."""
        module = getattr(trainer, "datamodule", None)
        data = module.fingerprints() if isinstance(module, CorpusModule) else {}
        self.record = dataclasses.replace(
            self.record,
            status="running",
            started=self.record.started or now(),
            data={name.removesuffix("_fingerprint"): value for name, value in data.items()},
            objective=objective_of(pl_module).recipe()["class_path"],
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
        clock = clock_of(pl_module)
        self._rates.append((clock.tokens_per_second, clock.flops_per_second))
        self._save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Marks the run as finished: its budget is spent, or a callback such as EarlyStopping has ended it."""
        ended = clock_of(pl_module).progress >= 1 or trainer.should_stop
        self._finish(trainer, pl_module, "finished" if ended else "interrupted")
        if trainer.is_global_zero:
            log.info("spent: %s", describe(clock_of(pl_module).spent))

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
        # a run that fails while its data is made has no clock yet
        spent = clock_of(pl_module).spent if getattr(pl_module, "meter", None) is not None else Spent()
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k != "step"}
        self.record = dataclasses.replace(
            self.record,
            spent={**spent.to_plain(), "peak_memory_bytes": peak_memory()},
            metrics=metrics,
            best=self._best,
            tokens_per_second=statistics.median(rate for rate, _ in self._rates) if self._rates else None,
            flops_utilisation=self._utilisation(trainer),
        )
        self.record.save(self.run.record_path)

    def _utilisation(self, trainer: Trainer) -> float | None:
        """Share of the devices' measured matrix-multiply speed that the run uses."""
        peak = peak_flops(str(trainer.strategy.root_device), training_dtype(str(trainer.precision))) if self._rates else None
        # ranks on one CPU share it; each GPU adds its own
        devices = trainer.world_size if trainer.strategy.root_device.type != "cpu" else trainer.num_nodes
        return statistics.median(rate for _, rate in self._rates) / (peak * devices) if peak else None
