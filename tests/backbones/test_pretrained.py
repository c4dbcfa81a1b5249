"""Reading other people's names and settings; that the result computes the same is the parity tests' business."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, RobertaConfig

from lmlab.backbones.pretrained import config_from_hugging_face, convert_state_dict
from lmlab.errors import CheckpointError, ConfigError

SMALL_BERT = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def test_bare_backbones() -> None:
    """Files of a model without a head have no prefix; their pooler is left out."""
    bare = BertModel(BertConfig(**SMALL_BERT)).state_dict()
    assert "embeddings.word_embeddings.weight" in bare and "pooler.dense.weight" in bare
    names = convert_state_dict("bert", bare, "tied")
    assert torch.equal(names["backbone.embedding.weight"], bare["embeddings.word_embeddings.weight"])
    assert len(names) == len(bare) - 2
    gpt2 = GPT2Model(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)).state_dict()
    names = convert_state_dict("gpt2", {**gpt2, "h.0.attn.bias": torch.ones(1), "h.0.attn.masked_bias": torch.ones(1)}, "tied")
    assert torch.equal(names["backbone.stack.blocks.0.attention.k.weight"], gpt2["h.0.attn.c_attn.weight"][:, 8:16].T)
    assert torch.equal(names["backbone.stack.blocks.0.attention.v.bias"], gpt2["h.0.attn.c_attn.bias"][16:])


def test_old_leaf_names() -> None:
    """The first BERT files call a norm's scale gamma and its shift beta."""
    names = convert_state_dict(
        "bert", {"bert.embeddings.LayerNorm.gamma": torch.ones(2), "bert.embeddings.LayerNorm.beta": torch.zeros(2)}, "tied"
    )
    assert names.keys() == {"backbone.stack.embedding_norm.weight", "backbone.stack.embedding_norm.bias"}


def test_layer_numbers_of_two_digits() -> None:
    """The number of the layer, and not T5's number of a sublayer, is carried over."""
    key = "decoder.block.11.layer.2.DenseReluDense.wo.weight"
    assert convert_state_dict("t5", {key: torch.ones(2, 2)}, "tied").keys() == {"backbone.decoder.blocks.11.feedforward.fc2.weight"}


def test_refused_weights() -> None:
    """A name that is not the family's; a head that is not the embedding."""
    with pytest.raises(CheckpointError, match=r"bert.embeddings.word_embedding.weight") as caught:
        convert_state_dict("bert", {"bert.embeddings.word_embedding.weight": torch.ones(1)}, "tied")
    assert "bert.embeddings.word_embeddings" in caught.value.remedy
    weights = {"model.embed_tokens.weight": torch.ones(3, 2), "lm_head.weight": torch.zeros(3, 2)}
    assert convert_state_dict("llama", weights, "untied").keys() == {"backbone.embedding.weight", "head.decoder.weight"}
    with pytest.raises(CheckpointError, match="head"):
        convert_state_dict("llama", weights, "tied")


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"model_type": "mamba"}, "model_type"),
        (BertConfig(**SMALL_BERT).to_dict() | {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        (BertConfig(**SMALL_BERT, hidden_act="tanh").to_dict(), "config.json"),
        (RobertaConfig(**SMALL_BERT, hidden_act="relu").to_dict(), "hidden_act"),
        (GPT2Config().to_dict() | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (LlamaConfig().to_dict() | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope_type"),
    ],
)
def test_refused_settings(data, field) -> None:
    """A setting that would change the function is refused, not ignored."""
    with pytest.raises(ConfigError) as caught:
        config_from_hugging_face(data)
    assert field in caught.value.where


def test_files_of_older_versions() -> None:
    """Llama's rotary base used to stand alone, and T5 1.1 says that it is not tied."""
    data = LlamaConfig().to_dict()
    del data["rope_parameters"]
    assert config_from_hugging_face(data | {"rope_theta": 5e5}).rope_base == 5e5
    t5 = {
        "model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6, "relative_attention_num_buckets": 32, "dropout_rate": 0.1,
    }  # fmt: skip
    config = config_from_hugging_face(t5 | {"tie_word_embeddings": False})
    assert (config.tie, config.logit_scale, config.activation) == ("untied", 1.0, "geglu_tanh")
    config = config_from_hugging_face(t5)
    assert (config.tie, config.logit_scale) == ("tied", 0.25)
