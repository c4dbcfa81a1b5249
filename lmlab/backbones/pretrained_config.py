"""The settings of Hugging Face models, read as ours: the proof that one config expresses these families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from lmlab.backbones.base import BackboneConfig
from lmlab.errors import ConfigError, nearest
from lmlab.nn.feedforward import Activation

DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
    },
    "gpt2": {
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "initializer_range": 0.02,
    },
    "llama": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
    },
    "t5": {
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_heads": 8,
        "relative_attention_num_buckets": 32,
        "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu",
    },
}
"""What transformers takes for a setting that is not in the file: older versions wrote down only what differed from these."""
DEFAULTS["roberta"] = DEFAULTS["bert"] | {"pad_token_id": 1}


def config_from_hugging_face(data: Mapping[str, Any]) -> BackboneConfig:
    """Reads a `config.json`.

    Args:
        data: Its content, or `to_dict()` of a transformers config. What is missing has the value that transformers gives it.

    Returns:
        A config that computes the same function.

    Raises:
        ConfigError: If the family is unknown, or a setting asks for something that is not built.
    """
    readers = {"bert": _bert, "roberta": _roberta, "gpt2": _gpt2, "llama": _llama, "t5": _t5}
    family = str(data.get("model_type"))
    if family not in readers:
        raise ConfigError(f"model type '{family}' cannot be read", where="config.json, model_type", remedy=nearest(family, readers))
    return readers[family](DEFAULTS[family] | dict(data))


def _activation(name: str, gate: str = "") -> Activation:
    plain = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu", "swish": "silu"}
    gated = {"relu": "reglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh", "silu": "swiglu"}
    if name not in plain:
        raise ConfigError(f"activation '{name}' is not built", where="config.json", remedy=nearest(name, plain))
    return cast(Activation, gated[plain[name]] if gate else plain[name])


def _expect(data: Mapping[str, Any], key: str, value: object) -> None:
    """Refuses a setting that would change the function and is not built."""
    if data.get(key, value) != value:
        raise ConfigError(
            f"{key} = {data[key]!r} is not built", where=f"config.json, {key}", why=f"only {value!r} is", remedy="use another model"
        )


def _tie(data: Mapping[str, Any], default: bool) -> Literal["tied", "untied"]:
    return "tied" if data.get("tie_word_embeddings", default) else "untied"


def _bert(data: Mapping[str, Any], offset: int = 0) -> BackboneConfig:
    _expect(data, "position_embedding_type", "absolute")
    _expect(data, "is_decoder", False)
    return BackboneConfig(
        hidden_size=data["hidden_size"],
        num_layers=data["num_hidden_layers"],
        num_heads=data["num_attention_heads"],
        feedforward_size=data["intermediate_size"],
        activation=_activation(data["hidden_act"]),
        norm="layernorm",
        norm_eps=data["layer_norm_eps"],
        norm_position="post",
        position="learned",
        max_length=data["max_position_embeddings"] - offset,
        position_offset=offset,
        position_counting="real" if offset else "all",
        num_segments=data["type_vocab_size"],
        embedding_norm="norm",
        qkv_bias=True,
        out_bias=True,
        feedforward_bias=True,
        norm_bias=True,
        head_bias=True,
        mlm_transform="dense",
        tie=_tie(data, True),
        dropout=data["hidden_dropout_prob"],
        attention_dropout=data["attention_probs_dropout_prob"],
        init="truncated",
        init_std=data["initializer_range"],
        residual_init="plain",
    )


def _roberta(data: Mapping[str, Any]) -> BackboneConfig:
    _expect(data, "hidden_act", "gelu")  # its MLM head has gelu whatever the layers have
    return _bert(data, offset=data["pad_token_id"] + 1)


def _gpt2(data: Mapping[str, Any]) -> BackboneConfig:
    _expect(data, "scale_attn_by_inverse_layer_idx", False)
    _expect(data, "add_cross_attention", False)
    return BackboneConfig(
        hidden_size=data["n_embd"],
        num_layers=data["n_layer"],
        num_heads=data["n_head"],
        feedforward_size=data.get("n_inner"),
        activation=_activation(data["activation_function"]),
        norm="layernorm",
        norm_eps=data["layer_norm_epsilon"],
        position="learned",
        max_length=data["n_positions"],
        qkv_bias=True,
        out_bias=True,
        feedforward_bias=True,
        norm_bias=True,
        attention_scale=None if data.get("scale_attn_weights", True) else 1.0,
        tie=_tie(data, True),
        dropout=data["resid_pdrop"],
        embedding_dropout=data["embd_pdrop"],
        attention_dropout=data["attn_pdrop"],
        init_std=data["initializer_range"],
    )


def _llama(data: Mapping[str, Any]) -> BackboneConfig:
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    _expect({"rope_type": rope.get("rope_type", rope.get("type", "default"))}, "rope_type", "default")
    return BackboneConfig(
        hidden_size=data["hidden_size"],
        num_layers=data["num_hidden_layers"],
        num_heads=data["num_attention_heads"],
        num_kv_heads=data.get("num_key_value_heads"),
        head_size=data.get("head_dim"),
        feedforward_size=data["intermediate_size"],
        activation=_activation(data["hidden_act"], gate="gated"),
        norm_eps=data["rms_norm_eps"],
        max_length=data["max_position_embeddings"],
        rope_base=rope.get("rope_theta", data.get("rope_theta", 10000.0)),
        qkv_bias=data.get("attention_bias", False),
        out_bias=data.get("attention_bias", False),
        feedforward_bias=data.get("mlp_bias", False),
        tie=_tie(data, False),
        attention_dropout=data.get("attention_dropout", 0.0),
        init_std=data["initializer_range"],
        residual_init="plain",
    )


def _t5(data: Mapping[str, Any]) -> BackboneConfig:
    # T5 1.1 says `tie_word_embeddings: false`; transformers 5 rewrites that to true, and keeps its meaning in `scale_decoder_outputs`
    gate, _, name = data["feed_forward_proj"].rpartition("-")
    name = "gelu_new" if (gate, name) == ("gated", "gelu") else name
    depth = data.get("num_decoder_layers")
    tied = data.get("scale_decoder_outputs", data.get("tie_word_embeddings", True))
    return BackboneConfig(
        hidden_size=data["d_model"],
        num_layers=data["num_layers"],
        num_decoder_layers=None if depth == data["num_layers"] else depth,
        num_heads=data["num_heads"],
        head_size=data["d_kv"],
        feedforward_size=data["d_ff"],
        activation=_activation(name, gate),
        norm_eps=data["layer_norm_epsilon"],
        position="t5",
        relative_buckets=data["relative_attention_num_buckets"],
        relative_max_distance=data.get("relative_attention_max_distance", 128),
        attention_scale=1.0,
        logit_scale=data["d_model"] ** -0.5 if tied else 1.0,
        tie="tied" if tied else "untied",
        dropout=data["dropout_rate"],
        attention_dropout=data["dropout_rate"],
        feedforward_dropout=data["dropout_rate"],
        output_dropout=data["dropout_rate"],
        init="t5",
        residual_init="plain",
    )
