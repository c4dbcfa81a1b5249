"""Layer maps: what is refused, and how rows are counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmlab.backbones import BackboneConfig, Encoder, EncoderDecoder
from lmlab.errors import ConfigError
from lmlab.objectives.layer_map import FeatureMatch, check_map, check_names

HIDDEN: dict[str, Any] = {"feature": "hidden", "loss": "mse", "teacher": -1, "student": -1}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"loss": "kl"}, "compared by mse or cosine or pkd"),
        ({"feature": "relation", "loss": "mse"}, "compared by kl"),
        ({"feature": "scores", "loss": "cosine"}, "compared by mse or kl"),
        ({"teacher": 0}, "counted from 1"),
        ({"student": None}, "counted from 1"),
        ({"student": -2}, "counted from 1"),
        ({"feature": "embedding"}, "a network has one embedding"),
        ({"weight": 0.0}, "set a positive number"),
        ({"weight": float("inf")}, "set a positive number"),
        ({"feature": "scores", "projection": "linear"}, "no width"),
        ({"feature": "scores", "rows": "first"}, "between all tokens"),
        ({"relation_heads": 4}, "cut into heads"),
        ({"feature": "relation", "loss": "kl", "relation_heads": 0}, "at least 1"),
        ({"feature": "states"}, "not a choice"),
    ],
)
def test_a_line_that_means_nothing_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        FeatureMatch(**HIDDEN | settings)


def test_names_tell_lines_apart() -> None:
    lines = [FeatureMatch(**HIDDEN), FeatureMatch(**HIDDEN | {"student": 2}), FeatureMatch(**HIDDEN | {"loss": "cosine"})]
    assert [line.name for line in lines] == ["hidden_last_mse", "hidden_2_mse", "hidden_last_cosine"]
    check_names(lines)
    with pytest.raises(ConfigError, match="'hidden_last_mse' twice"):
        check_names([lines[0], FeatureMatch(**HIDDEN | {"teacher": 3})])


def network(**given: Any) -> Encoder:
    return Encoder(BackboneConfig(**{"hidden_size": 24, "num_layers": 2, "num_heads": 4} | given), 30, 0)


@pytest.mark.parametrize(
    ("line", "student", "what"),
    [
        (HIDDEN | {"teacher": 4}, {}, r"teacher has no layer 4[\s\S]*it has 3"),
        (HIDDEN | {"student": 3}, {}, r"student has no layer 3[\s\S]*it has 2"),
        (HIDDEN, {"hidden_size": 16}, r"width 16 cannot be compared with states of width 24[\s\S]*projection"),
        ({"feature": "embedding", "loss": "mse"}, {"hidden_size": 16}, "width 16"),
        (HIDDEN | {"feature": "scores"}, {"num_heads": 2}, r"scores of 2 heads cannot be compared with scores of 4[\s\S]*relation"),
        (HIDDEN | {"feature": "relation", "loss": "kl", "relation_heads": 5}, {}, "teacher's queries cannot be cut into 5"),
        (HIDDEN | {"feature": "relation", "loss": "kl"}, {"num_kv_heads": 1, "head_size": 6}, "student's keys and values"),
    ],
)
def test_a_map_the_networks_do_not_have_is_refused(line: dict[str, Any], student: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        check_map([FeatureMatch(**line)], network(num_layers=3), network(**student))


@pytest.mark.parametrize("line", [{"teacher": 1}, {"student": 2}, {"teacher": 2, "student": 3}])
def test_a_layer_of_an_encoder_does_not_resemble_one_of_a_decoder(line: dict[str, Any]) -> None:
    teacher, student = (EncoderDecoder(BackboneConfig(hidden_size=24, num_layers=n, num_heads=4), 30, 0) for n in (3, 2))
    check_map(
        [FeatureMatch(**HIDDEN | {"teacher": 3, "student": 2}), FeatureMatch(**HIDDEN | {"teacher": 4, "student": 3})], teacher, student
    )
    with pytest.raises(ConfigError, match="encoder cannot be compared with one of a decoder"):
        check_map([FeatureMatch(**HIDDEN | line)], teacher, student)


def test_a_map_may_join_other_widths_and_heads() -> None:
    lines = [
        FeatureMatch(**HIDDEN | {"projection": "linear"}),
        FeatureMatch(**HIDDEN | {"feature": "relation", "loss": "kl", "relation_heads": 8}),
    ]
    check_map(lines, network(num_layers=3), network(hidden_size=16, num_heads=2))


def test_rows_are_counted_without_padding_and_on_the_right_side() -> None:
    ids = torch.zeros(2, 5, dtype=torch.long)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": torch.zeros(2, 3, dtype=torch.long)}
    alone = {"input_ids": ids}
    hidden, first = FeatureMatch(**HIDDEN), FeatureMatch(**HIDDEN | {"rows": "first"})
    early, late = FeatureMatch(**HIDDEN | {"student": 2}), FeatureMatch(**HIDDEN | {"student": 3})
    assert [m.count(alone, 2).item() for m in (hidden, first, early)] == [10, 2, 10]
    assert [m.count(batch, 2).item() for m in (early, late, hidden)] == [7, 6, 6]
