"""The weights of Hugging Face models, and what they are called here.

Each table maps a module of theirs to one of ours, `{}` standing for the number of a layer; weights and biases keep their leaf name. A
tuple means that one matrix of theirs is several of ours, stacked; two of theirs that are one of ours are copies. Ours are `backbone.…` and
`head.…`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lmlab.backbones.base import BackboneConfig
from lmlab.backbones.decoder import Decoder
from lmlab.backbones.encoder import Encoder
from lmlab.backbones.encoder_decoder import EncoderDecoder
from lmlab.backbones.pretrained_config import config_from_hugging_face
from lmlab.errors import CheckpointError, nearest

__all__ = ["NAMES", "PREFIX", "UNUSED", "Family", "Names", "config_from_hugging_face", "convert_state_dict"]

Family: TypeAlias = Literal["bert", "roberta", "gpt2", "llama", "t5"]
Names: TypeAlias = Mapping[str, str | tuple[str, ...]]


def _within(theirs: str, ours: str, names: Names) -> Names:
    """Puts prefixes before both sides of a table."""
    return {theirs + k: ours + v if isinstance(v, str) else tuple(ours + part for part in v) for k, v in names.items()}


_BERT_LAYER: Names = {
    "attention.self.query": "attention.q",
    "attention.self.key": "attention.k",
    "attention.self.value": "attention.v",
    "attention.output.dense": "attention.o",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "feedforward.fc1",
    "output.dense": "feedforward.fc2",
    "output.LayerNorm": "feedforward_norm",
}
_BERT_BODY: Names = {
    "embeddings.word_embeddings": "backbone.embedding",
    "embeddings.position_embeddings": "backbone.stack.positions",
    "embeddings.token_type_embeddings": "backbone.stack.segments",
    "embeddings.LayerNorm": "backbone.stack.embedding_norm",
    **_within("encoder.layer.{}.", "backbone.stack.blocks.{}.", _BERT_LAYER),
}
_T5_SELF: Names = {f"layer.0.SelfAttention.{x}": f"attention.{x}" for x in "qkvo"} | {"layer.0.layer_norm": "attention_norm"}
_T5_CROSS: Names = {f"layer.1.EncDecAttention.{x}": f"cross_attention.{x}" for x in "qkvo"} | {"layer.1.layer_norm": "cross_norm"}
_T5_FEEDFORWARD: Names = {
    "DenseReluDense.wi": "feedforward.fc1",
    "DenseReluDense.wi_0": "feedforward.gate",
    "DenseReluDense.wi_1": "feedforward.fc1",
    "DenseReluDense.wo": "feedforward.fc2",
    "layer_norm": "feedforward_norm",
}
_T5_ENCODER: Names = {**_T5_SELF, **_within("layer.1.", "", _T5_FEEDFORWARD)}
_T5_DECODER: Names = {**_T5_SELF, **_T5_CROSS, **_within("layer.2.", "", _T5_FEEDFORWARD)}
_T5_AROUND: Names = {"final_layer_norm": "final_norm", "block.{}.layer.0.SelfAttention.relative_attention_bias": "relative_bias.table"}

NAMES: dict[Family, Names] = {
    "bert": {
        **_within("bert.", "", _BERT_BODY),
        "cls.predictions.transform.dense": "head.dense",
        "cls.predictions.transform.LayerNorm": "head.norm",
        "cls.predictions.decoder": "head.decoder",
        "cls.predictions": "head.decoder",
    },
    "roberta": {
        **_within("roberta.", "", _BERT_BODY),
        "lm_head.dense": "head.dense",
        "lm_head.layer_norm": "head.norm",
        "lm_head.decoder": "head.decoder",
        "lm_head": "head.decoder",
    },
    "gpt2": {
        "transformer.wte": "backbone.embedding",
        "transformer.wpe": "backbone.stack.positions",
        "transformer.h.{}.ln_1": "backbone.stack.blocks.{}.attention_norm",
        "transformer.h.{}.attn.c_attn": tuple(f"backbone.stack.blocks.{{}}.attention.{x}" for x in "qkv"),
        "transformer.h.{}.attn.c_proj": "backbone.stack.blocks.{}.attention.o",
        "transformer.h.{}.ln_2": "backbone.stack.blocks.{}.feedforward_norm",
        "transformer.h.{}.mlp.c_fc": "backbone.stack.blocks.{}.feedforward.fc1",
        "transformer.h.{}.mlp.c_proj": "backbone.stack.blocks.{}.feedforward.fc2",
        "transformer.ln_f": "backbone.stack.final_norm",
        "lm_head": "head.decoder",
    },
    "llama": {
        "model.embed_tokens": "backbone.embedding",
        "model.layers.{}.input_layernorm": "backbone.stack.blocks.{}.attention_norm",
        **{f"model.layers.{{}}.self_attn.{x}_proj": f"backbone.stack.blocks.{{}}.attention.{x}" for x in "qkvo"},
        "model.layers.{}.post_attention_layernorm": "backbone.stack.blocks.{}.feedforward_norm",
        "model.layers.{}.mlp.gate_proj": "backbone.stack.blocks.{}.feedforward.gate",
        "model.layers.{}.mlp.up_proj": "backbone.stack.blocks.{}.feedforward.fc1",
        "model.layers.{}.mlp.down_proj": "backbone.stack.blocks.{}.feedforward.fc2",
        "model.norm": "backbone.stack.final_norm",
        "lm_head": "head.decoder",
    },
    "t5": {
        "shared": "backbone.embedding",
        "encoder.embed_tokens": "backbone.embedding",
        "decoder.embed_tokens": "backbone.embedding",
        **_within("encoder.", "backbone.encoder.", _T5_AROUND),
        **_within("encoder.block.{}.", "backbone.encoder.blocks.{}.", _T5_ENCODER),
        **_within("decoder.", "backbone.decoder.", _T5_AROUND),
        **_within("decoder.block.{}.", "backbone.decoder.blocks.{}.", _T5_DECODER),
        "lm_head": "head.decoder",
    },
}
PREFIX: dict[Family, str] = {"bert": "bert.", "roberta": "roberta.", "gpt2": "transformer.", "llama": "model.", "t5": ""}
"""What checkpoints of a bare backbone leave out."""
UNUSED = re.compile(r"pooler\.|seq_relationship\.|position_ids$|rotary_emb\.|\.attn\.(masked_)?bias$")
"""Buffers, and the parts of other heads."""
_TRANSPOSED = re.compile(r"\.c_(attn|proj|fc)\.weight$")
"""GPT-2's Conv1D keeps its weights the other way round."""
_OLD_LEAVES = {"gamma": "weight", "beta": "bias"}


def convert_state_dict(family: Family, state_dict: Mapping[str, Tensor], config: BackboneConfig) -> dict[str, Tensor]:
    """Renames, transposes and splits weights; being linear, it does the same for gradients.

    Args:
        family: Whose names they are.
        state_dict: Of a Hugging Face model, with or without its head.
        config: What they are for. If its head shares the embedding, the head's matrix is left out, after a check that it is the same.

    Returns:
        Weights by our names, exactly those that the backbone needs, and the head unless it is a bare backbone's file; views where
        possible.

    Raises:
        CheckpointError: On a name that is not the family's, on copies that differ, a head that is not tied as it should be, and on
            weights that are missing or too many for the config.
    """
    converted: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for key, tensor in state_dict.items():
        if UNUSED.search(key):
            continue
        if family == "gpt2" and _TRANSPOSED.search(key):
            tensor = tensor.t()
        targets = _targets(family, key)
        for target, part in zip(targets, tensor.chunk(len(targets)), strict=True):
            if target in converted and not torch.equal(converted[target], part):
                raise CheckpointError(
                    f"'{sources[target]}' and '{key}' differ",
                    why=f"they are copies of one weight, our {target}",
                    remedy="was the file put together from two models?",
                )
            converted[target], sources[target] = part, key
    if config.tie == "tied":
        _tie(converted)
    prefix = PREFIX[family]
    has_head = any(name.startswith("head.") for name in converted) or any(prefix and key.startswith(prefix) for key in state_dict)
    _check_complete(family, set(converted), config, "backbone and head" if has_head else "backbone")
    return converted


def _targets(family: Family, key: str) -> list[str]:
    """Our names for one of theirs."""
    names = NAMES[family]
    stem, _, leaf = key.rpartition(".")
    number = re.search(r"\.(\d+)\.", f".{stem}")
    pattern = re.sub(r"(^|\.)\d+\.", r"\1{}.", stem, count=1)
    target = names.get(pattern, names.get(PREFIX[family] + pattern))
    if target is None:
        raise CheckpointError(f"a {family} model has no weight called '{key}'", remedy=nearest(pattern, names))
    targets = (target,) if isinstance(target, str) else target
    return [f"{one.format(*number.groups() if number else ())}.{_OLD_LEAVES.get(leaf, leaf)}" for one in targets]


def _tie(converted: dict[str, Tensor]) -> None:
    """Leaves the matrix of a tied head to the embedding, and gives its bias the name it has then."""
    matrix, bias = converted.pop("head.decoder.weight", None), converted.pop("head.decoder.bias", None)
    if matrix is not None and not torch.equal(matrix, converted.setdefault("backbone.embedding.weight", matrix)):
        raise CheckpointError("the head is not the embedding", why="their matrices differ", remedy="set backbone.tie to untied")
    if bias is not None:
        converted["head.output_bias"] = bias


def _check_complete(family: Family, names: set[str], config: BackboneConfig, wanted: Literal["backbone", "backbone and head"]) -> None:
    kinds: dict[str, type[Encoder | Decoder | EncoderDecoder]] = {"bert": Encoder, "roberta": Encoder, "t5": EncoderDecoder}
    with torch.device("meta"):  # shapes only; the size of the vocabulary does not matter
        backbone = kinds.get(family, Decoder)(config, vocab_size=1, pad_id=0)
    needed = {f"backbone.{name}" for name in backbone.state_dict()}
    if wanted == "backbone and head":
        needed |= _head_names(family, config)
    for what, found in (("are missing", needed - names), ("have no place in the config", names - needed)):
        if found:
            raise CheckpointError(
                f"{len(found)} weights {what}: {', '.join(sorted(found)[:5])}{', ...' if len(found) > 5 else ''}",
                why=f"a {family} model of {config.num_layers} layers has {len(needed)}, and the file {len(names)}",
                remedy="is the file complete, and is the config its own?",
            )


def _head_names(family: Family, config: BackboneConfig) -> set[str]:
    """Our names of the weights of a head, tied or not."""
    found = {"head.decoder.weight"} if config.tie == "untied" else set()
    if config.head_bias:
        found.add("head.decoder.bias" if config.tie == "untied" else "head.output_bias")
    if family in ("bert", "roberta") and config.mlm_transform == "dense":
        found |= {"head.dense.weight", "head.dense.bias", "head.norm.weight"}
        found |= {"head.norm.bias"} if config.norm_bias else set()
    return found
