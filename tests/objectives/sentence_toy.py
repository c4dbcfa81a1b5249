"""Random sentences as a data module, handed out as one batch a step: for tests of losses over a batch."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from lmlab.backbones import BackboneConfig
from lmlab.budget import BudgetConfig
from lmlab.callbacks import Budget
from lmlab.data.batch import Batch, Feed
from lmlab.data.loader import OrderedView, Window, WindowCollator, WindowLoader
from lmlab.data.plan import BatchPlan
from lmlab.objectives.contrast_config import ContrastConfig
from lmlab.objectives.contrastive import Contrastive
from lmlab.objectives.passes import Step
from lmlab.optim import OptimizerConfig
from lmlab.tokenizer import Tokenizer
from tests.objectives.toy import LENGTH, Toy

BATCH = 8


def contrastive(tok: Tokenizer, dropout: float = 0.0, family: Any = "encoder", seed: int = 0, **contrast: Any) -> Contrastive:
    """A small objective, built; `word_repetition` unless told otherwise, which needs no dropout."""
    seed_everything(seed, verbose=False)
    config = BackboneConfig(hidden_size=24, num_layers=2, num_heads=2, dropout=dropout, init_std=0.1)
    settings = {"positives": "word_repetition", "mlp": "none", **contrast}
    made = Contrastive(tok, config, OptimizerConfig(), length=LENGTH, family=family, contrast=ContrastConfig(**settings))
    made.configure_model()
    return made


class Sentences(Toy):
    """A rank's share of a step comes as one batch."""

    def __init__(self, feed: Feed, tok: Tokenizer, micro: int = BATCH, num_workers: int = 0) -> None:
        super().__init__(feed, tok, BATCH, micro)
        self.num_workers = num_workers

    def setup(self, stage: str) -> None: ...

    def train_dataloader(self) -> WindowLoader:
        plan = BatchPlan(global_size=BATCH, micro_size=self.micro, loss_over="batch")
        view = OrderedView(self.blocks, seed=1)  # type: ignore[arg-type]
        return WindowLoader(view, WindowCollator(self.feed.collate, plan, 1), 0, self.num_workers)


def stamped(made: Contrastive, tok: Tokenizer, micro: int = BATCH) -> tuple[Batch, Step]:
    """The first batch, and the step it belongs to."""
    batch = next(iter(Sentences(made.feed(), tok, micro).train_dataloader()))
    window: Window = batch.pop("window")
    return batch, Step(window, window.counts, 1, lambda value: value)


def gradients(made: Contrastive, batch: Batch, step: Step) -> dict[str, torch.Tensor]:
    """Of a whole step, pass after pass, as the base does it."""
    made.zero_grad()
    torch.manual_seed(step.window.seed)
    for one in made.passes(batch, step):
        one().loss.backward()
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def fitted(made: Contrastive, tok: Tokenizer, micro: int, steps: int = 5, **given: Any) -> dict[str, torch.Tensor]:
    """Weights after some steps of plain SGD, which shows any error of scale."""
    made.optimizer_config = OptimizerConfig(name="sgd", lr=0.5, momentum=0.0)
    seed_everything(0, verbose=False)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Budget(BudgetConfig(steps=steps, validations=0, checkpoints=0))],
    )  # fmt: skip
    trainer.fit(made, Sentences(made.feed(), tok, micro, **given))
    assert trainer.global_step == steps
    return {k: v.clone() for k, v in made.state_dict().items()}
