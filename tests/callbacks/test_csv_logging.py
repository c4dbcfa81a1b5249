"""`metrics.csv` as a trainer's logger, also across a resume."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from lmlab.callbacks.csv_logging import MetricsCsvLogger
from lmlab.run.directory import RunDirectory, create_run


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.log("step", float(self.global_step + 1))
        self.log("train/loss", torch.tensor(float(self.global_step)))
        return (self.weight * batch).sum()

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("step", float(self.global_step))
        self.log("val/loss", 0.5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def rows(run: RunDirectory) -> list[dict[str, str]]:
    with run.metrics_path.open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def fit(run: RunDirectory, logger: MetricsCsvLogger, steps: int, **kwargs: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", logger=logger, max_steps=steps, val_check_interval=2, log_every_n_steps=1, limit_val_batches=1,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0,
        default_root_dir=run.path,
    )  # fmt: skip
    data = DataLoader(torch.ones(8, 1), batch_size=1)
    trainer.fit(Model(), data, data, **kwargs)
    return trainer


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
def test_training_and_validation_of_a_step_share_a_row_and_a_resumed_run_goes_on_in_the_file(tmp_path: Path) -> None:
    run = create_run(tmp_path, "x", 0)
    trainer = fit(run, MetricsCsvLogger(run), 4)
    expected = [
        {"step": "1", "train/loss": "0"},
        {"step": "2", "train/loss": "1", "val/loss": "0.5"},
        {"step": "3", "train/loss": "2"},
        {"step": "4", "train/loss": "3", "val/loss": "0.5"},
    ]
    assert rows(run) == expected
    trainer.save_checkpoint(run.checkpoints / "step=4.ckpt")
    lost = MetricsCsvLogger(run)  # what a killed run did after the checkpoint
    lost.log_metrics({"train/loss": 77.0, "new/metric": 1.0}, 5)
    lost.finalize("failed")
    again = MetricsCsvLogger(run)
    again.resume(4)
    fit(run, again, 6, ckpt_path=run.checkpoints / "step=4.ckpt")
    assert rows(run) == [*expected, {"step": "5", "train/loss": "4"}, {"step": "6", "train/loss": "5", "val/loss": "0.5"}]


def test_steps_come_from_the_call_then_the_metrics_then_the_row_before(tmp_path: Path) -> None:
    run = create_run(tmp_path, "x", 0)
    logger = MetricsCsvLogger(run)
    logger.log_metrics({"a": torch.tensor(1.5), "epoch": 0, "step": 99}, step=3)
    logger.log_metrics({"a": 2.5, "step": 7.0})
    logger.log_metrics({"a": 3.5})
    logger.log_hyperparams({"secret": "x"})
    logger.finalize("success")
    assert rows(run) == [{"step": "3", "a": "1.5"}, {"step": "7", "a": "2.5"}, {"step": "8", "a": "3.5"}]
    assert (logger.name, logger.version, logger.save_dir) == ("x", run.path.name, str(run.path))
