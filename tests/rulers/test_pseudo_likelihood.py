"""Pseudo-likelihood: against brute force, one masked position of one document at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything

from lmlab.backbones import BackboneConfig
from lmlab.data.batch import Example
from lmlab.errors import DataError
from lmlab.objectives.mlm import MLM
from lmlab.rulers.pseudo_likelihood import pseudo_bits_per_byte
from lmlab.tokenizer import Tokenizer
from tests.objectives.toy import LENGTH, tokenizer

TEXTS = ("The quick brown fox", "Füchse 狐", "the lazy dog sleeps")


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


@pytest.fixture(params=["rope", "learned"])
def model(tok: Tokenizer, request: pytest.FixtureRequest) -> MLM:
    """With weights that make the right answer depend on every token, and dropout that would be seen."""
    seed_everything(0, verbose=False)
    config = BackboneConfig(hidden_size=24, num_layers=2, num_heads=2, position=request.param, max_length=200, dropout=0.5)
    made = MLM(tok, config, length=LENGTH)
    made.configure_model()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.3)
    return made.train()


def _block(tok: Tokenizer, texts: tuple[str, ...]) -> Example:
    documents = [[tok.cls_id, *tok.encode(text), tok.sep_id] for text in texts]
    numbers = np.repeat(np.arange(len(documents)), [len(d) for d in documents])
    return Example(0, 0, np.concatenate(documents), numbers, sum(len(d) - 2 for d in documents))


@torch.no_grad()
def _brute_force(model: MLM, tok: Tokenizer, texts: tuple[str, ...]) -> float:
    """Every document in a row of its own, every token masked in a pass of its own; bits over the bytes of the texts."""
    bits = 0.0
    model.eval()
    for text in texts:
        ids = [tok.cls_id, *tok.encode(text), tok.sep_id]
        for place in range(1, len(ids) - 1):
            masked = torch.tensor([[*ids[:place], tok.mask_id, *ids[place + 1 :]]])
            bits -= model.head(model.backbone(masked))[0, place].log_softmax(-1)[ids[place]].item() / math.log(2)
    model.train()
    return bits / sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_every_token_is_masked_in_turn_and_sees_its_own_document_only(model: MLM, tok: Tokenizer, batch_size: int) -> None:
    blocks = [_block(tok, TEXTS), _block(tok, TEXTS[:1])]
    expected = _brute_force(model, tok, (*TEXTS, TEXTS[0]))
    assert pseudo_bits_per_byte(model, blocks, batch_size) == pytest.approx(expected, rel=1e-5)
    assert all(part.training for part in model.modules())


def test_no_text_has_no_bits_per_byte(model: MLM, tok: Tokenizer) -> None:
    for examples in ([], [_block(tok, ("",))]):
        with pytest.raises(DataError, match="no text to measure"):
            pseudo_bits_per_byte(model, examples)


def test_a_failure_leaves_the_model_in_training(model: MLM, tok: Tokenizer) -> None:
    broken = _block(tok, TEXTS)._replace(input_ids=np.array([tok.vocab_size]))
    with pytest.raises(IndexError):
        pseudo_bits_per_byte(model, [_block(tok, TEXTS), broken])
    assert all(part.training for part in model.modules())
