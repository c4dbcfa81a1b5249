"""The config: what it works out, what it refuses."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch

from lmlab.backbones import Decoder, Encoder, EncoderDecoder
from lmlab.backbones.base import BackboneConfig
from lmlab.config import from_dict, to_plain
from lmlab.errors import ConfigError
from lmlab.nn.block import BlockConfig
from lmlab.nn.feedforward import FeedForwardConfig
from lmlab.nn.init import InitConfig
from lmlab.nn.norm import NormConfig


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hidden_size": 100, "num_heads": 3}, "num_heads"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads"),
        ({"head_size": 7}, "position"),
        ({"embedding_size": 7, "position": "sinusoidal"}, "position"),
        ({"position_offset": 2}, "position_offset"),
        ({"position_counting": "real", "position": "learned"}, "position_counting"),
        ({"norm_bias": True}, "norm_bias"),
        ({"init": "t5"}, "residual_init"),
        ({"dropout": 1.0}, "dropout"),
        ({"output_dropout": -0.1}, "output_dropout"),
        ({"num_layers": 0}, "num_layers"),
        ({"feedforward_size": 0}, "feedforward_size"),
        ({"num_segments": -1}, "num_segments"),
        ({"position": "t5", "relative_buckets": 6}, "relative_buckets"),
        ({"position": "t5", "relative_max_distance": 16}, "relative_max_distance"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"init_std": 0.0}, "init_std"),
        ({"position": "rotary"}, "position"),
        ({"norm": "layer_norm"}, "norm"),
        ({"norm_position": "prenorm"}, "norm_position"),
        ({"final_norm": "yes"}, "final_norm"),
        ({"embedding_norm": "layernorm"}, "embedding_norm"),
        ({"mlm_transform": "bert"}, "mlm_transform"),
        ({"tie": "Tied"}, "tie"),
        ({"init": "xavier"}, "init"),
        ({"residual_init": "scaled"}, "residual_init"),
        ({"checkpointing": "full"}, "checkpointing"),
        ({"activation": "swish"}, "activation"),
        ({"position": "learned", "position_counting": "padding"}, "position_counting"),
        ({"logit_scale": 0.0}, "logit_scale"),
        ({"embedding_scale": 0.0}, "embedding_scale"),
        ({"attention_scale": -1.0}, "attention_scale"),
        ({"rope_base": -5.0}, "rope_base"),
        ({"rope_base": float("nan")}, "rope_base"),
        ({"position": "alibi", "rope_base": 5e5}, "rope_base"),
        ({"relative_buckets": 16}, "relative_buckets"),
        ({"relative_max_distance": 64}, "relative_max_distance"),
        ({"init": "t5", "residual_init": "plain", "init_std": 0.5}, "init_std"),
    ],
)
def test_refusals(changes, field) -> None:
    """Each error names the field at fault and what to do."""
    with pytest.raises(ConfigError) as caught:
        BackboneConfig(**changes)
    assert caught.value.where == f"BackboneConfig.{field}"
    assert caught.value.remedy


@pytest.mark.parametrize(
    "config",
    [
        NormConfig,
        InitConfig,
        partial(BlockConfig, attention=None, feedforward=None, norm=None, dropout=0.0, init=None),
        partial(FeedForwardConfig, hidden_size=2, inner_size=2, bias=False, dropout=0.0),
    ],
)
def test_the_parts_check_their_choices_too(config) -> None:
    """Whoever builds a brick without a backbone config gets no silent default either."""
    choice = {"NormConfig": "kind", "InitConfig": "rule", "BlockConfig": "norm_position", "FeedForwardConfig": "activation"}
    name = getattr(config, "func", config).__name__
    with pytest.raises(ConfigError) as caught:
        config(**{choice[name]: "nonsense"})
    assert caught.value.where == f"{name}.{choice[name]}"


@pytest.mark.parametrize(
    ("kind", "changes", "field"),
    [
        (Encoder, {"num_decoder_layers": 7}, "BackboneConfig.num_decoder_layers"),
        (Decoder, {"num_decoder_layers": 7}, "BackboneConfig.num_decoder_layers"),
        (EncoderDecoder, {"num_segments": 2}, "BackboneConfig.num_segments"),
    ],
)
def test_a_backbone_refuses_what_it_would_not_follow(kind, changes, field) -> None:
    """Without the setting it is built, and the other kinds take it."""
    config = BackboneConfig(hidden_size=8, num_heads=2, num_layers=1)
    kind(config, vocab_size=5, pad_id=0)
    with pytest.raises(ConfigError) as caught:
        kind(replace(config, **changes), vocab_size=5, pad_id=0)
    assert caught.value.where == field and caught.value.remedy
    other = {Encoder: EncoderDecoder, Decoder: EncoderDecoder, EncoderDecoder: Decoder}[kind]
    other(replace(config, **changes), vocab_size=5, pad_id=0)


@pytest.mark.parametrize("kind", [Encoder, Decoder, EncoderDecoder])
def test_rows_longer_than_a_learned_table_are_refused_beforehand(kind) -> None:
    """The last length that passes is the last that a built backbone reads; positions without a table have no limit."""
    config = BackboneConfig(hidden_size=8, num_heads=2, num_layers=1, position="learned", max_length=6)
    backbone, read = kind(config, vocab_size=5, pad_id=0), {}
    for length in (5, 6, 7, 8):
        ids = torch.ones(1, length, dtype=torch.long)
        try:
            backbone(ids, ids) if kind is EncoderDecoder else backbone(ids)
            read[length] = True
        except ConfigError:
            read[length] = False
    for length, fits in read.items():
        with nullcontext() if fits else pytest.raises(ConfigError, match="do not fit into 6 learned positions") as caught:
            kind.check(config, {"length": length})
        if not fits:
            assert "backbone.max_length" in caught.value.where and "length" in caught.value.where
        kind.check(replace(config, position="rope"), {"length": length})


def test_a_backbone_of_one_stack_is_shared_in_either_direction_and_one_of_two_stacks_as_it_is() -> None:
    config = BackboneConfig(hidden_size=8, num_heads=2, num_layers=1)
    for given in [kind(config, vocab_size=5, pad_id=0) for kind in (Encoder, Decoder, EncoderDecoder)]:
        for kind in (Encoder, Decoder, EncoderDecoder):
            if type(given) is kind:
                assert kind.expect(given) is given
            elif EncoderDecoder in (kind, type(given)):
                with pytest.raises(ConfigError, match=type(given).__name__):
                    kind.expect(given)
            else:
                taken = kind.expect(given)
                assert type(taken) is kind
                assert [id(p) for p in taken.parameters()] == [id(p) for p in given.parameters()]
                assert taken.state_dict().keys() == given.state_dict().keys()


def test_sizes_that_follow_from_others() -> None:
    """Head size, inner size: given, or worked out."""
    assert BackboneConfig(hidden_size=96, num_heads=3).head_width == 32
    assert BackboneConfig(hidden_size=100, num_heads=3, head_size=32).head_width == 32
    assert BackboneConfig(hidden_size=64, activation="gelu").inner_size == 256
    assert BackboneConfig(hidden_size=768).inner_size == 2048  # 8/3 of 768 exactly
    assert BackboneConfig(hidden_size=128).inner_size == 352  # 341.3 rounded up to a multiple of 32
    assert BackboneConfig(feedforward_size=99).inner_size == 99
    assert BackboneConfig(embedding_size=16).vector_size == 16


def test_json_form() -> None:
    """Survives a checkpoint."""
    config = BackboneConfig(num_kv_heads=2, attention_scale=1.0, position="t5")
    assert from_dict(BackboneConfig, to_plain(config)) == config
