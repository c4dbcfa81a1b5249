"""GPT-2 and Llama: states, loss and every gradient equal transformers'."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

LENGTH = 11


def _shifted(labels: Tensor) -> Tensor:
    """Moves labels to the position that predicts them, which transformers does inside."""
    return torch.cat((labels[:, 1:], torch.full_like(labels[:, :1], -100)), dim=1)


def _run(pair, rows, assert_same) -> None:
    rows = rows._replace(labels=rows.labels.masked_fill(rows.positions == 0, -100))  # or left padding would predict the first token
    theirs = pair.theirs(
        rows.ids, attention_mask=rows.mask.long(), position_ids=rows.positions, labels=rows.labels, output_hidden_states=True
    )
    states = pair.backbone(rows.ids, attention_mask=rows.mask, position_ids=rows.positions)
    logits = pair.head(states)
    real = rows.mask  # what padding computes is nobody's business: its queries see nothing
    assert_same(
        pair,
        {"states": theirs.hidden_states[-1][real], "real": theirs.logits[real], "loss": theirs.loss},
        {"states": states[real], "real": logits[real], "logits": logits},
        _shifted(rows.labels),
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("scaled", [True, False])
def test_gpt2(make_pair, make_rows, assert_same, side, scaled) -> None:
    """Fused and transposed weights, with and without the attention scale."""
    config = GPT2Config(
        vocab_size=37, n_embd=48, n_layer=3, n_head=4, n_inner=56, n_positions=LENGTH, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        scale_attn_weights=scaled, pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    _run(make_pair(GPT2LMHeadModel(config), "gpt2"), make_rows(LENGTH, side, 0), assert_same)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("bias", "tied"), [(False, False), (True, True)])
def test_llama(make_pair, make_rows, assert_same, side, bias, tied) -> None:
    """Two query heads a key head, heads of another size than D / H, another rotary base."""
    config = LlamaConfig(
        vocab_size=37, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=10, intermediate_size=56,
        max_position_embeddings=32, rms_norm_eps=1e-5, attention_bias=bias, mlp_bias=bias, tie_word_embeddings=tied, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, attn_implementation="eager",
    )  # fmt: skip
    _run(make_pair(LlamaForCausalLM(config), "llama"), make_rows(LENGTH, side, 0), assert_same)


def test_llama_without_mask(make_pair, make_rows, assert_same) -> None:
    """The causal path without any mask."""
    config = LlamaConfig(
        vocab_size=37, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, head_dim=14, intermediate_size=40,
        pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    pair = make_pair(LlamaForCausalLM(config), "llama")
    rows = make_rows(LENGTH, "right", 5)
    theirs = pair.theirs(rows.ids, labels=rows.labels)
    logits = pair.head(pair.backbone(rows.ids))
    assert_same(pair, {"logits": theirs.logits, "loss": theirs.loss}, {"logits": logits}, _shifted(rows.labels))
