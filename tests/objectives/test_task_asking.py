"""Asking the tasks of a multitask objective: predictions, samples, fillings."""

from __future__ import annotations

import pytest
from lightning.pytorch import seed_everything

from lmlab.objectives.mlm import MLM
from lmlab.objectives.multitask import Multitask
from lmlab.tokenizer import Tokenizer
from tests.objectives.tasks import TaskToy, multitask, task_batches
from tests.objectives.toy import tokenizer


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


def built(tok: Tokenizer, dropout: float = 0.0) -> Multitask:
    seed_everything(0, verbose=False)
    made = multitask(tok, dropout=dropout)
    made.configure_model()
    return made


def test_predictions_and_samples_are_those_of_the_tasks(tok: Tokenizer) -> None:
    made = built(tok).eval()
    batch = task_batches(made, tok)[0]
    assert len(made.predict_step(batch, 0)) == 8
    views = TaskToy(made.feed(), tok).views.views
    examples = [view[i]._replace(extra={"task": task}) for task, view in views.items() for i in range(2)]
    assert len(made.samples(examples, 0)) == 4


def test_asking_a_task_in_the_middle_of_training_uses_no_dropout(tok: Tokenizer) -> None:
    made = built(tok, dropout=0.5).train()
    mlm = made.child("mlm")
    assert isinstance(mlm, MLM)
    text = f"the {tok.token(tok.mask_id)} dog"
    assert mlm.fill(text) == mlm.fill(text)
    assert all(module.training for module in made.modules())
