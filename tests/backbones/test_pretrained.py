"""Reading other people's names and settings; that the result computes the same is the parity tests' business."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from lmlab.backbones.pretrained import config_from_hugging_face, convert_state_dict
from lmlab.errors import CheckpointError, ConfigError

SMALL_BERT = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def _small(family: str) -> Any:
    sizes = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0}
    gpt2 = GPT2Config(**sizes, n_embd=8, n_layer=2, n_head=2, n_positions=16)
    llama = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    t5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 2, "vocab_size": 20}
    torch.manual_seed(0)
    return {
        "bert": lambda: BertForMaskedLM(BertConfig(**SMALL_BERT)),
        "bert, bare": lambda: BertModel(BertConfig(**SMALL_BERT)),
        "gpt2": lambda: GPT2LMHeadModel(gpt2),
        "gpt2, bare": lambda: GPT2Model(gpt2),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**sizes, **llama)),
        "t5": lambda: T5ForConditionalGeneration(T5Config(**t5)),
    }[family]()


def _converted(family: str, change: Callable[[dict[str, Tensor]], Any] = lambda weights: None) -> dict[str, Tensor]:
    model = _small(family)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change(weights)
    name: Any = family.partition(",")[0]
    return convert_state_dict(name, weights, config_from_hugging_face(model.config.to_dict()))


def test_bare_backbones() -> None:
    """Files of a model without a head have no prefix; their pooler is left out."""
    bare = _small("bert, bare").state_dict()
    assert "embeddings.word_embeddings.weight" in bare and "pooler.dense.weight" in bare
    names = _converted("bert, bare")
    assert torch.equal(names["backbone.embedding.weight"], bare["embeddings.word_embeddings.weight"])
    assert len(names) == len(bare) - 2
    gpt2 = _small("gpt2, bare").state_dict()
    names = _converted("gpt2, bare", lambda w: w.update({"h.0.attn.bias": torch.ones(1), "h.0.attn.masked_bias": torch.ones(1)}))
    assert torch.equal(names["backbone.stack.blocks.0.attention.k.weight"], gpt2["h.0.attn.c_attn.weight"][:, 8:16].T)
    assert torch.equal(names["backbone.stack.blocks.0.attention.v.bias"], gpt2["h.0.attn.c_attn.bias"][16:])


def test_old_leaf_names() -> None:
    """The first BERT files call a norm's scale gamma and its shift beta."""

    def rename(weights: dict[str, Tensor]) -> None:
        for key in [k for k in weights if "LayerNorm" in k]:
            weights[key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")] = weights.pop(key)

    old, new = _converted("bert", rename), _converted("bert")
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in new)


def test_layer_numbers_of_two_digits() -> None:
    """The number of the layer, and not T5's number of a sublayer, is carried over."""
    config = T5Config(d_model=4, d_kv=2, d_ff=4, num_layers=1, num_decoder_layers=12, num_heads=2, vocab_size=5)
    weights = T5ForConditionalGeneration(config).state_dict()
    names = convert_state_dict("t5", weights, config_from_hugging_face(config.to_dict()))
    for layer in (1, 11):
        theirs = weights[f"decoder.block.{layer}.layer.2.DenseReluDense.wo.weight"]
        assert torch.equal(names[f"backbone.decoder.blocks.{layer}.feedforward.fc2.weight"], theirs)


def test_refused_weights() -> None:
    """A name that is not the family's; a head that is not the embedding."""
    with pytest.raises(CheckpointError, match=r"bert.embeddings.word_embedding.weight") as caught:
        _converted("bert", lambda w: w.update({"bert.embeddings.word_embedding.weight": torch.ones(1)}))
    assert "bert.embeddings.word_embeddings" in caught.value.remedy
    untied = _converted("llama", lambda w: w.update({"lm_head.weight": torch.zeros(20, 8)}))
    assert untied["head.decoder.weight"].eq(0).all() and not untied["backbone.embedding.weight"].eq(0).all()
    with pytest.raises(CheckpointError, match="head"):
        _converted("gpt2", lambda w: w.update({"lm_head.weight": torch.zeros(20, 8)}))


@pytest.mark.parametrize("family", ["bert", "bert, bare", "gpt2", "gpt2, bare", "llama", "t5"])
def test_a_file_that_lacks_a_weight_is_refused_whichever_it_is(family) -> None:
    """Taken away one by one. Only copies may be absent: of what a family ties, one is enough, and it is not lost."""
    complete = _converted(family)
    copies = {
        "bert": ["bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"],
        "gpt2": ["transformer.wte.weight", "lm_head.weight"],
        "t5": ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"],
    }.get(family, [])
    copies += ["cls.predictions.bias", "cls.predictions.decoder.bias"] if family == "bert" else []
    for name in _small(family).state_dict():
        if "pooler" in name:
            continue
        if name in copies:
            left = _converted(family, lambda w, gone=name: w.pop(gone))
            assert left.keys() == complete.keys() and all(torch.equal(left[key], complete[key]) for key in complete)
        else:
            with pytest.raises(CheckpointError, match=r"1 weights are missing: (backbone|head)|3 weights are missing: backbone.*[qkv]"):
                _converted(family, lambda w, gone=name: w.pop(gone))
    for keep in copies if family != "bert" else []:
        left = _converted(family, lambda w, keep=keep: [w.pop(name) for name in copies if name != keep])
        assert torch.equal(left["backbone.embedding.weight"], complete["backbone.embedding.weight"])


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("bert", "cls.predictions.decoder.bias"),
        ("bert", "cls.predictions.bias"),
        ("t5", "encoder.embed_tokens.weight"),
        ("t5", "decoder.embed_tokens.weight"),
        ("t5", "shared.weight"),
    ],
)
def test_copies_that_differ_are_refused(family, name) -> None:
    """Neither is silently preferred."""
    with pytest.raises(CheckpointError, match="differ") as caught:
        _converted(family, lambda w: w[name].add_(1))
    assert name in str(caught.value)


def test_a_file_of_another_depth_is_refused() -> None:
    """More layers than the config has are not dropped."""
    config = config_from_hugging_face(_small("gpt2").config.to_dict() | {"n_layer": 1})
    with pytest.raises(CheckpointError, match=r"16 weights have no place in the config: backbone\.stack\.blocks\.1\."):
        convert_state_dict("gpt2", _small("gpt2").state_dict(), config)


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


@pytest.mark.parametrize("kind", [BertConfig, RobertaConfig, GPT2Config, LlamaConfig, T5Config])
def test_a_setting_that_a_file_leaves_out_has_transformers_default(kind) -> None:
    """Each alone, and all together: old versions wrote down only what differed."""
    full = kind().to_dict()
    whole = config_from_hugging_face(full)
    worked_out = {"num_heads": 1, "num_kv_heads": 1, "head_size": 2}  # what the file may spell out, and ours works out
    for data in [{"model_type": full["model_type"]}, *({k: v for k, v in full.items() if k != left_out} for left_out in full)]:
        if "model_type" in data:
            config = config_from_hugging_face(data)
            assert dataclasses.replace(config, **worked_out) == dataclasses.replace(whole, **worked_out)
            assert config.block_config(1) == whole.block_config(1)
