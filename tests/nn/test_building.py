"""Blocks are handed over one by one, and the network is the one that is built without."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lmlab.backbones import BackboneConfig, EncoderDecoder
from lmlab.nn.block import Block
from lmlab.nn.building import after_each_block, built

CONFIG = BackboneConfig(hidden_size=16, num_layers=3, num_heads=2, num_decoder_layers=2)


def network() -> EncoderDecoder:
    torch.manual_seed(4)
    return EncoderDecoder(CONFIG, vocab_size=20, pad_id=0)


def test_each_block_of_both_stacks_is_handed_over_once_and_when_it_is_drawn() -> None:
    found: list[nn.Module] = []
    drawn: list[torch.Tensor] = []

    def tell(block: nn.Module) -> None:
        found.append(block)
        drawn.append(torch.cat([p.detach().flatten() for p in block.parameters()]))

    plain = network()
    with after_each_block(tell):
        made = network()
    assert [id(one) for one in found] == [id(one) for one in made.blocks] and all(isinstance(one, Block) for one in found)
    assert all(torch.equal(a, torch.cat([p.flatten() for p in b.parameters()])) for a, b in zip(drawn, plain.blocks, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), plain.parameters(), strict=True))


def test_nobody_is_told_outside() -> None:
    found: list[nn.Module] = []
    block = nn.Linear(1, 1)
    with after_each_block(found.append):
        with after_each_block(None):
            assert built(block) is block and not found
        with pytest.raises(KeyError), after_each_block(lambda _: None):
            raise KeyError
        built(block)
        assert found == [block]
    built(block)
    assert found == [block]
