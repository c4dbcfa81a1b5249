"""Asking the tasks of a multitask objective: predictions, samples, fillings."""

from __future__ import annotations

import pytest
from lightning.pytorch import seed_everything

from lmlab.errors import ConfigError
from lmlab.objectives.mlm import MLM
from lmlab.objectives.task_config import TaskConfig
from lmlab.tokenizer import Tokenizer
from tests.objectives.tasks import TaskToy, built, multitask, task_batches, tasks
from tests.objectives.toy import LENGTH, tokenizer


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


def test_predictions_and_samples_are_those_of_the_tasks(tok: Tokenizer) -> None:
    made = built(tok).eval()
    batch = task_batches(made, tok)[0]
    assert len(made.predict_step(batch, 0)) == 8
    views = TaskToy(made.feed(), tok).views.views
    examples = [view[i]._replace(extra={"task": task}) for task, view in views.items() for i in range(2)]
    assert len(made.samples(examples, 0)) == 4


def test_a_task_shows_as_many_samples_whatever_the_others_look_through(tok: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """CLM shows each text it is given; MLM is made to ask for three texts to show one."""
    monkeypatch.setattr(MLM, "texts_per_sample", 3)
    made = built(tok).eval()
    assert made.texts_per_sample == 3
    view = TaskToy(made.feed(), tok).views.views["clm"]
    examples = [view[i]._replace(extra={"task": "clm"}) for i in range(6)]
    assert len(made.samples(examples, 0)) == 2


def test_a_task_that_predicts_no_tokens_is_left_out(tok: Tokenizer) -> None:
    """Beside one that does; where there is none, the message says so."""
    seed_everything(0, verbose=False)
    contrast = {"positives": "word_repetition"}
    vectors = TaskConfig(objective="lmlab.objectives.contrastive.Contrastive", settings={"length": LENGTH, "contrast": contrast})
    made = multitask(tok, given={**tasks("mlm"), "vectors": vectors})
    made.configure_model()
    [batch] = task_batches(made, tok)
    assert set(batch["tasks"]) == {"mlm", "vectors"} and len(made.eval().predict_step(batch, 0)) == 4
    alone = multitask(tok, given={"vectors": vectors})
    alone.configure_model()
    with pytest.raises(ConfigError, match="Contrastive does not predict tokens"):
        alone.eval().predict_step(task_batches(alone, tok)[0], 0)


def test_asking_a_task_in_the_middle_of_training_uses_no_dropout(tok: Tokenizer) -> None:
    made = built(tok, dropout=0.5).train()
    mlm = made.child("mlm")
    assert isinstance(mlm, MLM)
    text = f"the {tok.token(tok.mask_id)} dog"
    assert mlm.fill(text) == mlm.fill(text)
    assert all(module.training for module in made.modules())
