"""Fresh weights have the spread that their rule says."""

from __future__ import annotations

import pytest
import torch

from lmlab.backbones.base import BackboneConfig
from lmlab.backbones.encoder_decoder import EncoderDecoder
from lmlab.nn.init import TRUNCATION, InitConfig, init_embedding, init_linear

SPREAD = 0.02  # relative error of a standard deviation over about 10^5 draws is below 0.5 %; this is four times that
WIDTH = 320
TRUNCATED_STD = 0.8796  # of a standard normal cut at two deviations, sqrt(1 - 4 phi(2) / (2 Phi(2) - 1))


def _drawn(config: InitConfig, **role) -> torch.Tensor:
    linear = torch.nn.Linear(WIDTH, 400)
    torch.nn.init.ones_(linear.bias)
    init_linear(linear, config, **role)
    assert linear.bias.abs().max() == 0
    return linear.weight.detach()


@pytest.mark.parametrize(
    ("config", "role", "std"),
    [
        (InitConfig(), {}, 0.02),
        (InitConfig(std=0.1, depth=8), {}, 0.1),
        (InitConfig(std=0.1, depth=8), {"residual": "stream"}, 0.1 / 4),
        (InitConfig(rule="truncated", std=0.1), {}, 0.1 * TRUNCATED_STD),
        (InitConfig(rule="t5"), {}, WIDTH**-0.5),
        (InitConfig(rule="t5"), {"query_head_size": 16}, WIDTH**-0.5 / 4),
    ],
)
def test_linear(config, role, std) -> None:
    """Mean 0, the expected deviation, and no outlier past the cut."""
    weight = _drawn(config, **role)
    assert weight.std().item() == pytest.approx(std, rel=SPREAD)
    assert abs(weight.mean().item()) < std * SPREAD
    if config.rule == "truncated":
        assert weight.abs().max() <= TRUNCATION * config.std


def test_embedding() -> None:
    """T5's embeddings start at 1, all others at the rule's spread."""
    table = torch.nn.Embedding(400, WIDTH)
    for config, std in ((InitConfig(rule="t5"), 1.0), (InitConfig(std=0.3), 0.3)):
        init_embedding(table, config)
        assert table.weight.std().item() == pytest.approx(std, rel=SPREAD)


def test_roles_in_a_backbone() -> None:
    """Only what writes to the residual stream is scaled by depth; the two stacks each by their own."""
    backbone = EncoderDecoder(BackboneConfig(hidden_size=256, num_layers=2, num_decoder_layers=8), 100, pad_id=0)
    for name, parameter in backbone.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == 1).all()
            continue
        stream = name.endswith(("attention.o.weight", "fc2.weight"))
        depth = (2 if name.startswith("encoder") else 8) if stream else 0.5
        assert parameter.std().item() == pytest.approx(0.02 / (2 * depth) ** 0.5, rel=2 * SPREAD), name


def test_t5_rule_in_a_backbone() -> None:
    """The published rule, name by name."""
    config = BackboneConfig(
        hidden_size=256, num_layers=2, num_heads=4, head_size=16, feedforward_size=400, position="t5", init="t5", residual_init="plain"
    )
    backbone = EncoderDecoder(config, 500, pad_id=0)
    expected = {
        "attention.q.weight": (256 * 16) ** -0.5,
        "attention.k.weight": 256**-0.5,
        "attention.v.weight": 256**-0.5,
        "attention.o.weight": (4 * 16) ** -0.5,
        "fc1.weight": 256**-0.5,
        "fc2.weight": 400**-0.5,
        "embedding.weight": 1.0,
    }
    checked = set()
    for name, parameter in backbone.named_parameters():
        for end, std in expected.items():
            if name.endswith(end):
                checked.add(end)
                assert parameter.std().item() == pytest.approx(std, rel=2 * SPREAD), name
    assert checked == expected.keys()
    table = backbone.decoder.relative_bias.table.weight  # 128 draws only
    assert table.std().item() == pytest.approx(256**-0.5, rel=0.3)
