"""The config: what it works out, what it refuses."""

from __future__ import annotations

import pytest

from lmlab.backbones.base import BackboneConfig
from lmlab.config import from_dict, to_plain
from lmlab.errors import ConfigError


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
    ],
)
def test_refusals(changes, field) -> None:
    """Each error names the field at fault and what to do."""
    with pytest.raises(ConfigError) as caught:
        BackboneConfig(**changes)
    assert caught.value.where == f"BackboneConfig.{field}"
    assert caught.value.remedy


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
