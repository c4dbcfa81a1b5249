"""Several tasks on random tokens, without files: for tests of multitask learning."""

from __future__ import annotations

from itertools import islice
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer, seed_everything

from lmlab.backbones import BackboneConfig
from lmlab.budget import BudgetConfig
from lmlab.callbacks import Budget
from lmlab.data.batch import Batch
from lmlab.data.loader import WindowLoader
from lmlab.data.plan import BatchPlan
from lmlab.data.task_order import TaskOrder, TaskSampling
from lmlab.data.tasks import TaskCollator, TaskFeeds, TaskViews
from lmlab.objectives.multitask import Multitask
from lmlab.objectives.task_config import TaskConfig
from lmlab.objectives.task_step import GradientsConfig
from lmlab.optim import OptimizerConfig
from lmlab.optim.weighting import WeightingConfig
from lmlab.tokenizer import Tokenizer
from tests.objectives.toy import LENGTH, Blocks

SGD = OptimizerConfig(name="sgd", lr=0.5, momentum=0.0)
"""Plain steps, which show any error of scale."""
SILENT = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
QUIET: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 1, **dict.fromkeys(SILENT, False)}
PATHS = {"mlm": "lmlab.objectives.mlm.MLM", "clm": "lmlab.objectives.clm.CLM"}


def tasks(*names: str, length: int = LENGTH, **weights: float) -> dict[str, TaskConfig]:
    """Tasks by the kind their names begin with, `mlm` or `clm`."""
    return {
        name: TaskConfig(objective=PATHS[name[:3]], settings={"length": length}, weight=weights.get(name, 1.0))
        for name in names or ("mlm", "clm")
    }


def multitask(tok: Tokenizer, given: dict[str, TaskConfig] | None = None, dropout: float = 0.0, **settings: Any) -> Multitask:
    """A small multitask objective that is not built yet."""
    config = BackboneConfig(hidden_size=24, num_layers=2, num_heads=2, dropout=dropout, mlm_transform="dense", head_bias=True)
    return Multitask(tok, config, settings.pop("optimizer", SGD), tasks=tasks() if given is None else given, **settings)


class TaskToy(LightningDataModule):
    """Feeds several tasks from `Blocks`, each in its own order."""

    def __init__(self, feeds: TaskFeeds, tok: Tokenizer, global_size: int = 8, micro: int = 4) -> None:
        super().__init__()
        self.feeds, self.global_size, self.micro = feeds, global_size, micro
        self.views = TaskViews({task: Blocks(feed, tok) for task, feed in feeds.items()}, 1)  # type: ignore[arg-type]

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        self.trainer.accumulate_grad_batches = self.global_size // self.micro

    def train_dataloader(self) -> WindowLoader:
        sizes = tuple(len(view) for view in self.views.views.values())
        order = TaskOrder(sampling=self.feeds.sampling, sizes=sizes, global_size=self.global_size, seed=1)
        plans = tuple(BatchPlan(global_size=self.global_size, micro_size=self.micro, loss_over=f.loss_over) for f in self.feeds.values())
        return WindowLoader(self.views, TaskCollator(self.feeds, plans, order), 0, 0)


def task_batches(made: Multitask, tok: Tokenizer, num: int = 1, size: int = 4) -> list[Batch]:
    """Micro-batches without their stamps."""
    found = islice(TaskToy(made.feed(), tok, size, size).train_dataloader(), num)
    return [{key: value for key, value in batch.items() if key != "window"} for batch in found]


def trained(made: Multitask, tok: Tokenizer, steps: int, micro: int = 8, *callbacks: Any, **trainer: Any) -> Trainer:
    """Trains a few steps of eight examples a task."""
    seed_everything(0, verbose=False)
    run = Trainer(**{**QUIET, **trainer}, callbacks=[Budget(BudgetConfig(steps=steps, validations=0, checkpoints=0)), *callbacks])
    run.fit(made, TaskToy(made.feed(), tok, 8, micro))
    return run


PCGRAD = GradientsConfig(rule="pcgrad")
ALL_KINDS: dict[str, dict[str, Any]] = {
    "equal": {},
    "static": {"weighting": WeightingConfig(kind="static"), "given": tasks(mlm=0.3)},
    "scheduled": {"weighting": WeightingConfig(kind="scheduled", schedule={"mlm": [(0.0, 1.0), (1.0, 0.2)]})},
    "uncertainty": {"weighting": WeightingConfig(kind="uncertainty")},
    "dwa": {"weighting": WeightingConfig(kind="dwa", period=1, temperature=0.05)},
    "gradnorm": {"weighting": WeightingConfig(kind="gradnorm", lr=0.2)},
    "random": {"weighting": WeightingConfig(kind="random")},
    "pcgrad": {"gradients": PCGRAD},
    "in turn": {"sampling": TaskSampling(regime="round_robin")},
}
"""Every way to weigh, combine and sample."""


def built(tok: Tokenizer, **given: Any) -> Multitask:
    """One that is built, always with the same weights."""
    seed_everything(0, verbose=False)
    made = multitask(tok, **given)
    made.configure_model()
    return made
