"""The run's clock: every unit ends a run where it should, and everything is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from lmlab.budget import BudgetConfig
from lmlab.callbacks import Budget, FiniteGuard, WeightAveraging
from lmlab.errors import BudgetError, LabError
from lmlab.objectives.base import Objective
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


def test_the_rate_follows_the_budget_and_never_takes_a_step_at_zero() -> None:
    rates = []

    class Watch(Budget):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])
            super().on_train_batch_end(trainer, *args)

    made = objective("clm", TOK)
    Trainer(**QUIET, callbacks=[Watch(BudgetConfig(steps=10, validations=0))]).fit(made, Toy(made.feed(), TOK, 8, 8))
    full = made.optimizer_config.settings()["lr"]
    assert rates == pytest.approx([full * made.schedule_config.factor((k + 1) / 10) for k in range(10)])
    assert min(rates) > 0


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
