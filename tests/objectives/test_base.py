"""What every objective shares: rebuilding, accounting, gradients, FLOPs, learning."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.utils.flop_counter import FlopCounterMode

from lmlab.backbones import BackboneConfig
from lmlab.budget import BudgetConfig
from lmlab.callbacks import Budget
from lmlab.config import rebuild
from lmlab.data.loader import EvalCollator, EvalLoader, OrderedView
from lmlab.errors import ConfigError
from lmlab.losses import Losses, Part, Tally
from lmlab.objectives.base import Objective
from lmlab.objectives.clm import CLM
from lmlab.optim import ScheduleConfig
from lmlab.tokenizer import Tokenizer
from tests.objectives.toy import OBJECTIVES, Toy, batches, objective, tokenizer

SILENT = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
QUIET = {"accelerator": "cpu", "max_epochs": 1, **dict.fromkeys(SILENT, False)}
FLOAT_NOISE = 1e-6  # float32 sums taken in another order


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


def built(name: str, tok: Tokenizer) -> Objective:
    seed_everything(0, verbose=False)
    made = objective(name, tok)
    made.configure_model()
    return made


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_is_rebuilt_from_its_json(name: str, tok: Tokenizer) -> None:
    made = built(name, tok)
    again = rebuild(json.loads(json.dumps(made.recipe())))
    again.configure_model()
    again.load_state_dict(made.state_dict())
    batch = batches(name, tok)[0]
    assert torch.equal(again(batch).total(batch["counts"]), made(batch).total(batch["counts"]))
    assert again.recipe() == made.recipe()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_building_twice_or_after_other_draws_gives_the_same_weights(name: str, tok: Tokenizer) -> None:
    first = built(name, tok)
    weights = {k: v.clone() for k, v in first.state_dict().items()}
    first.configure_model()
    seed_everything(0, verbose=False)
    torch.rand(100)
    second = objective(name, tok)
    second.configure_model()
    for state in (first.state_dict(), second.state_dict()):
        assert all(torch.equal(weights[k], v) for k, v in state.items())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_counts_are_the_number_of_labels_and_the_loss_is_finite(name: str, tok: Tokenizer) -> None:
    made = built(name, tok)
    for batch in batches(name, tok, num=6):
        for key, part in made(batch).parts.items():
            labels, kinds = (batch["pair_labels"], 2) if key == "nsp" else (batch["labels"], tok.vocab_size)
            assert part.count.item() == (labels != -100).sum().item()
            assert abs(part.sum.item() / part.count.item() - math.log(kinds)) < 1.0  # untrained: near uniform


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_parameter_gets_a_gradient(name: str, tok: Tokenizer) -> None:
    made = built(name, tok)
    batch = batches(name, tok)[0]
    made(batch).total(batch["counts"]).backward()
    bad = [n for n, p in made.named_parameters() if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()]
    assert bad == []


@pytest.mark.parametrize("name", OBJECTIVES)
def test_flops_are_those_torch_counts(name: str, tok: Tokenizer) -> None:
    made = built(name, tok)
    batch = batches(name, tok)[0]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        made(batch).total(batch["counts"]).backward()
    assert made.flops(batch) == counter.get_total_flops()


def weights_after(name: str, tok: Tokenizer, micro: int, steps: int = 5) -> dict[str, torch.Tensor]:
    """Plain SGD, which shows any error of scale."""
    made = objective(name, tok)
    made.optimizer_config = type(made.optimizer_config)(name="sgd", lr=0.5, momentum=0.0)
    seed_everything(0, verbose=False)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Budget(BudgetConfig(steps=steps, validations=0, checkpoints=0))],
    )  # fmt: skip
    trainer.fit(made, Toy(made.feed(), tok, 8, micro))
    assert trainer.global_step == steps
    return {k: v.clone() for k, v in made.state_dict().items()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_accumulation_equals_one_big_batch(name: str, tok: Tokenizer) -> None:
    whole = weights_after(name, tok, 8)
    for micro in (1, 2):
        cut = weights_after(name, tok, micro)
        assert all(torch.allclose(whole[k], cut[k], rtol=FLOAT_NOISE, atol=FLOAT_NOISE) for k in whole)


def test_parts_are_normalised_by_their_own_counts() -> None:
    losses = Losses({"a": Part(torch.tensor(6.0), torch.tensor([2])), "b": Part(torch.tensor(5.0), torch.tensor([10]), 0.5)}, {})
    assert losses.total({"a": torch.tensor([3]), "b": torch.tensor([10])}).item() == pytest.approx(6 / 3 + 0.5 * 5 / 10)
    assert losses.total({"a": torch.tensor([3]), "b": torch.tensor([0])}).isfinite()


def test_a_tally_divides_once() -> None:
    tally = Tally()
    for total, count in ((6.0, 2), (1.0, 8)):
        tally.add(Losses({"a": Part(torch.tensor(total), torch.tensor([count]))}, {"right": Part(torch.tensor(1), torch.tensor([count]))}))
    means = tally.means(lambda x: x)
    assert means == pytest.approx({"loss": 7 / 10, "right": 2 / 10})
    assert tally.means(lambda x: x) == {}


def test_a_run_without_a_budget_is_refused(tok: Tokenizer) -> None:
    made = objective("clm", tok)
    trainer = Trainer(**QUIET)
    with pytest.raises(ConfigError, match="no budget"):
        trainer.fit(made, Toy(made.feed(), tok))


class Watched(Toy):
    """Validates on the blocks it trains on."""

    def val_dataloader(self) -> EvalLoader:
        view = OrderedView(self.blocks, seed=None, limit=8)  # type: ignore[arg-type]
        return EvalLoader(view, EvalCollator(self.feed.eval_collate), [[0, 1, 2, 3], [4, 5, 6, 7]])


def test_a_plateau_lowers_the_rate_and_is_resumed(tok: Tokenizer, tmp_path: Path) -> None:
    """No loss falls by 99 % from one validation to the next, so each after the first is a plateau."""
    schedule = ScheduleConfig(kind="plateau", warmup=0.0, min_ratio=0.0, plateau_factor=0.5, patience=0, threshold=0.99)

    def fitted(steps: int, *callbacks: Callback, ckpt: Path | None = None) -> Trainer:
        made = objective("clm", tok, schedule=schedule)
        trainer = Trainer(**QUIET, callbacks=[Budget(BudgetConfig(steps=steps, validations=steps)), *callbacks])
        trainer.fit(made, Watched(made.feed(), tok, 8, 8), ckpt_path=ckpt, weights_only=True if ckpt else None)
        return trainer

    def rate(trainer: Trainer) -> float:
        return trainer.optimizers[0].param_groups[0]["lr"] / trainer.optimizers[0].param_groups[0]["initial_lr"]

    assert [rate(fitted(steps)) for steps in (1, 2, 3, 4)] == [1.0, 1.0, 0.5, 0.25]

    class Save(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    fitted(4, Save())
    assert rate(fitted(4, ckpt=tmp_path / "3.ckpt")) == 0.25


def test_what_was_not_measured_has_no_mean() -> None:
    tally = Tally()
    tally.add(Losses({"a": Part(torch.tensor(0.0), torch.tensor([0]))}, {}))
    assert math.isnan(tally.means(lambda table: table)["loss"])


def test_a_filler_counts_for_nothing_but_its_name() -> None:
    tally, other = Tally(), Tally()
    real, filler = (Losses({"a": Part(torch.tensor(v), torch.tensor([2]))}, {}) for v in (3.0, float("nan")))
    tally.add(real)
    tally.add(filler, is_filler=True)
    other.add(filler, is_filler=True)
    tables: list[torch.Tensor] = []
    assert tally.means(lambda table: tables.append(table) or table)["loss"] == 1.5
    other.means(lambda table: tables.append(table) or table)
    assert tables[0].shape == tables[1].shape, "ranks add up the same table"


class Parent(CLM):
    """Holds a module before it is built, as an objective with a metric or a teacher does."""

    def __init__(self, tokenizer: Tokenizer, length: int = 16) -> None:
        super().__init__(tokenizer, BackboneConfig(hidden_size=16, num_layers=1, num_heads=2), length=length)
        self.held = torch.nn.Linear(2, 2)


def test_an_objective_that_holds_modules_is_built_once(tok: Tokenizer) -> None:
    made = Parent(tok)
    made.configure_model()
    before = made.backbone
    made.configure_model()
    assert made.backbone is before
