"""Vectors of texts from objectives that were not trained for it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lmlab.backbones import BackboneConfig
from lmlab.errors import ConfigError, DataError
from lmlab.objectives.multitask import Multitask
from lmlab.objectives.task_config import TaskConfig
from lmlab.rulers.text_vectors import text_vectors
from tests.objectives.sentence_toy import contrastive
from tests.objectives.toy import LENGTH, objective, tokenizer

TOK = tokenizer()
TEXTS = ["The fox", "The dog sleeps on, and the fox runs away into the wood", "wood"]


@pytest.mark.parametrize("name", ["mlm", "clm"])
def test_they_are_means_of_states(name: str) -> None:
    made = objective(name, TOK, dropout=0.5)
    made.configure_model()
    made.train()
    found = text_vectors(made, TEXTS)
    made.eval()
    for text, vector in zip(TEXTS, found, strict=True):
        ids = [TOK.cls_id, *TOK.encode(text)[: LENGTH - 2], TOK.sep_id] if name == "mlm" else [TOK.bos_id, *TOK.encode(text)[: LENGTH - 1]]
        with torch.no_grad():
            expected = F.normalize(made.backbone(torch.tensor([ids]))[0].mean(0), dim=0)  # type: ignore[operator]
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)


def test_a_contrastive_model_gives_its_own() -> None:
    made = contrastive(TOK, mlp="always")
    assert torch.equal(text_vectors(made, TEXTS), made.embed(TEXTS))


def test_of_several_tasks_the_contrastive_one_gives_them() -> None:
    """Also in the middle of a training with dropout, on the backbone that the tasks share."""
    settings = {"length": LENGTH, "contrast": {"positives": "dropout", "pooling": "cls"}}
    tasks = {
        "mlm": TaskConfig(objective="lmlab.objectives.mlm.MLM", settings={"length": LENGTH}),
        "like": TaskConfig(objective="lmlab.objectives.contrastive.Contrastive", settings=settings),
    }
    both = Multitask(TOK, BackboneConfig(hidden_size=24, num_layers=1, num_heads=2, dropout=0.5), tasks=tasks)
    both.configure_model()
    both.train()
    found = text_vectors(both, TEXTS)
    assert both.backbone.training
    ids = torch.tensor([[TOK.cls_id, *TOK.encode(TEXTS[0])[: LENGTH - 2], TOK.sep_id]])
    with torch.no_grad():
        expected = F.normalize(both.eval().backbone(ids)[:, 0], dim=-1)
    torch.testing.assert_close(found[:1], expected, rtol=1e-4, atol=1e-5)


def test_what_reads_two_texts_has_none() -> None:
    made = objective("span_corruption", TOK)
    made.configure_model()
    with pytest.raises(ConfigError, match="gives no vectors"):
        text_vectors(made, TEXTS)


def test_a_diverged_network_has_none() -> None:
    """Ranks of what is not a number would look like the best."""
    made = contrastive(TOK)
    with torch.no_grad():
        made.backbone.embedding.weight.fill_(torch.nan)
    with pytest.raises(DataError, match="not finite"):
        text_vectors(made, TEXTS)
