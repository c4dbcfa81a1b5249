"""Dropout acts in the same places as in transformers: from the same seed both draw the same masks, in the same order and shapes."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

SEED = 11
LENGTH = 7


def _same(pair, theirs, ours) -> None:
    pair.theirs.train(), pair.backbone.train()
    torch.manual_seed(SEED)
    expected = theirs()
    torch.manual_seed(SEED)
    actual = ours()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)
    assert not torch.allclose(ours(), actual)  # another seed, other masks


def test_bert(make_pair, make_rows) -> None:
    """After the embeddings' norm, on attention weights, on both parts' outputs."""
    config = BertConfig(
        vocab_size=37, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, hidden_dropout_prob=0.3,
        attention_probs_dropout_prob=0.2, attn_implementation="eager",
    )  # fmt: skip
    pair, ids = make_pair(BertForMaskedLM(config), "bert"), make_rows(LENGTH, "right", 5).ids
    _same(pair, lambda: pair.theirs(ids).logits, lambda: pair.head(pair.backbone(ids)))


def test_gpt2(make_pair, make_rows) -> None:
    """Three probabilities: embeddings, attention weights, residual."""
    config = GPT2Config(
        vocab_size=37, n_embd=24, n_layer=2, n_head=3, embd_pdrop=0.4, attn_pdrop=0.2, resid_pdrop=0.3, pad_token_id=0,
        attn_implementation="eager",
    )  # fmt: skip
    pair, ids = make_pair(GPT2LMHeadModel(config), "gpt2"), make_rows(LENGTH, "right", 5).ids
    _same(pair, lambda: pair.theirs(ids).logits, lambda: pair.head(pair.backbone(ids)))


def test_llama(make_pair, make_rows) -> None:
    """On attention weights only."""
    config = LlamaConfig(
        vocab_size=37, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, attention_dropout=0.3,
        pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    pair, ids = make_pair(LlamaForCausalLM(config), "llama"), make_rows(LENGTH, "right", 5).ids
    _same(pair, lambda: pair.theirs(ids).logits, lambda: pair.head(pair.backbone(ids)))


@pytest.mark.parametrize("form", ["relu", "gated-gelu"])
def test_t5(make_pair, make_rows, form) -> None:
    """Everywhere: embeddings, attention weights, inside the feed-forward, residual, final states."""
    config = T5Config(
        vocab_size=37, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3, dropout_rate=0.3, feed_forward_proj=form,
        attn_implementation="eager",
    )  # fmt: skip
    pair = make_pair(T5ForConditionalGeneration(config), "t5")
    source, ids = make_rows(LENGTH, "right", 5).ids, make_rows(LENGTH - 2, "right", 5).ids
    _same(
        pair,
        lambda: pair.theirs(source, decoder_input_ids=ids).logits,
        lambda: pair.head(pair.backbone(source, ids)),
    )
