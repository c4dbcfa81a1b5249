"""The run's clock: every unit ends a run where it should, and everything is counted."""

from __future__ import annotations

from itertools import islice
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers.logger import DummyLogger

from lmlab.budget import UNITS, BudgetConfig, Spent, Unit
from lmlab.callbacks import Budget, FiniteGuard, WeightAveraging
from lmlab.errors import BudgetError, LabError
from lmlab.objectives.base import Objective
from lmlab.optim import OptimizerConfig, ScheduleConfig
from tests.objectives.toy import LENGTH, Toy, objective, tokenizer

TOK = tokenizer()
SILENT = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
QUIET = {"accelerator": "cpu", "max_epochs": 1, **dict.fromkeys(SILENT, False)}


def run(budget: BudgetConfig, name: str = "mlm", callbacks: tuple[Any, ...] = (), **trainer: Any) -> tuple[Objective, Budget]:
    seed_everything(0, verbose=False)
    made, meter = objective(name, TOK), Budget(budget)
    Trainer(**{**QUIET, **trainer}, callbacks=[meter, *callbacks]).fit(made, Toy(made.feed(), TOK, 8, 4))
    return made, meter


def test_steps_tokens_and_flops_end_a_run_after_the_step_that_reaches_them() -> None:
    raw = LENGTH - 1  # the toy's blocks hold one special token
    made, by_steps = run(BudgetConfig(steps=5, validations=0))
    assert by_steps.spent.steps == 5 and by_steps.spent.examples == 40
    assert by_steps.spent.tokens == 40 * raw
    assert by_steps.spent.supervised_tokens == 40 * round(0.15 * LENGTH)
    batch = next(iter(Toy(made.feed(), TOK, 8, 8).train_dataloader()))
    assert by_steps.spent.flops == 5 * made.flops(batch)
    _, by_tokens = run(BudgetConfig(tokens=8 * raw * 3 + 1, validations=0))
    assert by_tokens.spent.steps == 4, "one token more than three steps takes a fourth"
    _, by_flops = run(BudgetConfig(flops=by_steps.spent.flops, validations=0))
    assert by_flops.spent.steps == 5


def test_seconds_end_a_run() -> None:
    _, meter = run(BudgetConfig(seconds=0.3, validations=0))
    assert meter.spent.seconds >= 0.3
    assert meter.spent.seconds < 5 and meter.spent.steps >= 1
    assert meter.progress == 1.0 and meter.tokens_per_second > 0


@pytest.mark.parametrize("unit", UNITS)
def test_the_rate_follows_the_budget_and_no_step_is_taken_at_zero(unit: Unit) -> None:
    """The middle of the step is the clock: with a warm-up and a fall to zero, neither the first nor the last step is wasted."""
    rates = []

    class Watch(Budget):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if args[2]["window"].is_last:
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])
            super().on_train_batch_end(trainer, *args)

    made = objective("clm", TOK, schedule=ScheduleConfig(kind="linear", warmup=0.3, min_ratio=0.0))
    flops = made_flops(made)
    limits = {"steps": 10, "tokens": 80 * (LENGTH), "flops": 10 * flops, "seconds": 0.5}
    Trainer(**QUIET, callbacks=[Watch(BudgetConfig(**{unit: limits[unit]}, validations=0))]).fit(made, Toy(made.feed(), TOK, 8, 4))
    full = made.optimizer_config.settings()["lr"]
    assert min(rates) > 0
    if unit != "seconds":
        clock = [(k + 0.5) / 10 for k in range(10)]
        assert rates == pytest.approx([full * (c / 0.3 if c < 0.3 else (1 - c) / 0.7) for c in clock])


def made_flops(made: Objective) -> int:
    other = objective("clm", TOK)
    other.configure_model()
    return sum(other.flops(batch) for batch in islice(Toy(made.feed(), TOK, 8, 4).train_dataloader(), 2))


class Losses(Callback):
    """Writes down the loss of each micro-batch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(outputs["loss"]))


def test_dropout_is_drawn_anew_for_each_micro_batch() -> None:
    """With a learning rate of almost nothing and the same text each time, only dropout can change the loss."""
    made = objective("clm", TOK, dropout=0.5, optimizer=OptimizerConfig(lr=1e-30))

    class Same(Toy):
        def train_dataloader(self) -> Any:
            return ({**batch, **first} for batch in super().train_dataloader())

    first = {k: v for k, v in next(iter(Toy(made.feed(), TOK, 8, 4).train_dataloader())).items() if k != "window"}
    watch = Losses()
    Trainer(**QUIET, callbacks=[Budget(BudgetConfig(steps=3, validations=0)), watch]).fit(made, Same(made.feed(), TOK, 8, 4))
    assert len(set(watch.values)) == 6


def test_counts_reach_the_loggers_exactly() -> None:
    class Kept(DummyLogger):
        rows: ClassVar[list[dict[str, Any]]] = []

        def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
            self.rows.append(metrics)

    made, meter = objective("clm", TOK), Budget(BudgetConfig(steps=2, validations=0))
    meter.spent = Spent(tokens=2**53)
    Trainer(**{**QUIET, "logger": Kept()}, log_every_n_steps=1, callbacks=[meter]).fit(made, Toy(made.feed(), TOK, 8, 8))
    tokens = [row["budget/tokens"] for row in Kept.rows if "budget/tokens" in row]
    assert tokens == [2**53 + 8 * LENGTH, 2**53 + 16 * LENGTH]


def test_two_rules_for_one_end_are_refused() -> None:
    with pytest.raises(BudgetError, match="max_steps"):
        run(BudgetConfig(steps=2), max_steps=3)


def test_a_loss_that_is_no_number_stops_the_run_before_the_step() -> None:
    weights: list[torch.Tensor] = []

    class Poison(FiniteGuard):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 2 and batch["window"].is_first:
                with torch.no_grad():
                    pl_module.head.nats = lambda rows, labels: rows.sum() * torch.nan
                weights.extend(p.clone() for p in pl_module.parameters())
                self.module = pl_module

    guard = Poison()
    with pytest.raises(LabError, match="the loss is nan at step 2"):
        run(BudgetConfig(steps=5, validations=0), callbacks=(guard,))
    assert all(torch.equal(a, b) for a, b in zip(weights, guard.module.parameters(), strict=True))


def test_averaged_weights_are_those_of_the_closed_form() -> None:
    seen: list[torch.Tensor] = []

    class Watch(WeightAveraging):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            if batch["window"].is_last:
                seen.append(pl_module.backbone.embedding.weight.detach().clone())

        def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
            super().on_fit_start(trainer, pl_module)
            seen.append(pl_module.backbone.embedding.weight.detach().clone())

    made, _ = run(BudgetConfig(steps=4, validations=0), callbacks=(Watch(decay=0.5),))
    average = seen[0]
    for t, weight in enumerate(seen[1:]):
        decay = min(0.5, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * weight
    assert torch.allclose(made.backbone.embedding.weight, average, atol=1e-6)  # type: ignore[union-attr]
