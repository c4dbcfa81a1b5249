"""T5 and T5 1.1: states of both sides, loss and every gradient equal transformers'."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

SOURCE_LENGTH, LENGTH = 13, 9
FORMS = {
    "1.0": {"d_model": 48, "d_kv": 12, "num_heads": 4, "feed_forward_proj": "relu", "tie_word_embeddings": True},
    "1.1": {"d_model": 32, "d_kv": 10, "num_heads": 6, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


def _model(form: str) -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=37, d_ff=56, num_layers=3, num_decoder_layers=2, dropout_rate=0.0, relative_attention_num_buckets=8,
        relative_attention_max_distance=10, attn_implementation="eager", **FORMS[form],
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    if form == "1.1":  # transformers 5 ties what has no weight of its own in a file; the published 1.1 weights have
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.shared.weight))
    return model


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", ["1.0", "1.1"])
def test_t5(make_pair, make_rows, assert_same, form, side) -> None:
    """Shared relative biases, near and far buckets, unequal lengths and depths, heads of another size than D / H."""
    pair = make_pair(_model(form), "t5")
    source, target = make_rows(SOURCE_LENGTH, side, 0), make_rows(LENGTH, side, 0, seed=4)
    theirs = pair.theirs(
        source.ids, attention_mask=source.mask.long(), decoder_input_ids=target.ids, decoder_attention_mask=target.mask.long(),
        labels=target.labels,
    )  # fmt: skip
    encoded = pair.backbone.encode(source.ids, attention_mask=source.mask)
    states = pair.backbone(source.ids, target.ids, attention_mask=source.mask, decoder_attention_mask=target.mask)
    logits = pair.head(states)
    assert_same(
        pair,
        {"encoded": theirs.encoder_last_hidden_state, "real": theirs.logits[target.mask], "loss": theirs.loss},
        {"encoded": encoded, "real": logits[target.mask], "logits": logits},
        target.labels,
    )
