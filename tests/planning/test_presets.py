"""The large backbones have as many parameters as the models they are named after; nothing is allocated to count them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from lmlab.backbones import BackboneConfig
from lmlab.objectives.clm import CLM
from lmlab.planning.vocabulary import planned_tokenizer
from lmlab.planning.weights import network_of
from lmlab.tokenizer import TokenizerConfig

FOLDER = Path(__file__).parents[2] / "configs" / "backbones"
CLOSE = 0.01
# parameters as published, and the vocabulary they were published with; those of Llama are counted in the released weights, and GPT-2's in
# transformers' models. GPT-2 has biases and learned positions, which this backbone has not
PUBLISHED = {
    "large": (354_823_168, 50257),
    "xl": (1_557_611_200, 50257),
    "1b": (1_100_048_384, 32000),
    "7b": (6_738_415_616, 32000),
    "13b": (13_015_864_320, 32000),
    "70b": (68_976_648_192, 32000),
}
EXACT = ("1b", "7b", "13b", "70b")


def closed_form(config: BackboneConfig, vocab_size: int) -> int:
    """Attention with grouped heads, SwiGLU, two norms a layer, one at the end, and a table or two."""
    d, f, k = config.hidden_size, config.inner_size, config.head_width
    keys = (config.num_kv_heads or config.num_heads) * k
    layer = 2 * d * config.num_heads * k + 2 * d * keys + 3 * d * f + 2 * d
    return config.num_layers * layer + d + vocab_size * d * (2 if config.tie == "untied" else 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_closed_form_and_of_the_paper(name: str) -> None:
    published, vocab_size = PUBLISHED[name]
    config = BackboneConfig(**yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["model"]["init_args"]["backbone"])
    model = CLM(planned_tokenizer(TokenizerConfig(vocab_size=vocab_size)), config)
    with torch.device("meta"):
        model.configure_model()
    network = network_of(model)
    assert network.num_parameters == closed_form(config, vocab_size)
    assert network.num_parameters == pytest.approx(published, rel=CLOSE)
    assert (network.num_parameters == published) is (name in EXACT)
    assert len({weight.unit for weight in network.weights}) == config.num_layers + 1
    assert network.num_embedding == vocab_size * config.hidden_size
