"""BERT and RoBERTa: states, loss and every gradient equal transformers'."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

LENGTH = 11
SIZES = {
    "vocab_size": 37,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "attn_implementation": "eager",
}


@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_new"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_bert(make_pair, make_rows, assert_same, side, activation) -> None:
    """Positions count padding; segments, transform head and its bias take part."""
    config = BertConfig(**SIZES, max_position_embeddings=LENGTH + 2, type_vocab_size=3, hidden_act=activation, layer_norm_eps=1e-5)
    pair = make_pair(BertForMaskedLM(config), "bert")
    rows = make_rows(LENGTH, side, 0)
    segments = torch.arange(LENGTH).expand(3, -1) % 3
    theirs = pair.theirs(rows.ids, attention_mask=rows.mask.long(), token_type_ids=segments, labels=rows.labels, output_hidden_states=True)
    states = pair.backbone(rows.ids, attention_mask=rows.mask, token_type_ids=segments)
    assert_same(
        pair,
        {"states": theirs.hidden_states[-1], "logits": theirs.logits, "loss": theirs.loss},
        {"states": states, "logits": pair.head(states)},
        rows.labels,
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_roberta(make_pair, make_rows, assert_same, side) -> None:
    """Positions start after the padding id and skip padding."""
    config = RobertaConfig(**SIZES, max_position_embeddings=LENGTH + 2, type_vocab_size=1, pad_token_id=1)
    pair = make_pair(RobertaForMaskedLM(config), "roberta")
    rows = make_rows(LENGTH, side, 1)
    theirs = pair.theirs(rows.ids, attention_mask=rows.mask.long(), labels=rows.labels, output_hidden_states=True)
    states = pair.backbone(rows.ids, attention_mask=rows.mask)
    assert_same(
        pair,
        {"states": theirs.hidden_states[-1], "logits": theirs.logits, "loss": theirs.loss},
        {"states": states, "logits": pair.head(states)},
        rows.labels,
    )


def test_bert_without_mask(make_pair, make_rows, assert_same) -> None:
    """No mask at all: the path without any."""
    pair = make_pair(BertForMaskedLM(BertConfig(**SIZES, max_position_embeddings=LENGTH)), "bert")
    rows = make_rows(LENGTH, "right", 5)
    segments = torch.ones_like(rows.ids).tril()
    theirs = pair.theirs(rows.ids, token_type_ids=segments, labels=rows.labels)
    logits = pair.head(pair.backbone(rows.ids, token_type_ids=segments))
    assert_same(pair, {"logits": theirs.logits, "loss": theirs.loss}, {"logits": logits}, rows.labels)
