"""The counts that budgets are made of equal torch's own flop counter, on the meta device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lmlab.backbones.base import BackboneConfig
from lmlab.backbones.decoder import Decoder
from lmlab.backbones.encoder import Encoder
from lmlab.backbones.encoder_decoder import EncoderDecoder
from lmlab.heads import LMHead, MLMHead

VOCAB_SIZE = 53
CONFIGS = {
    "plain": BackboneConfig(hidden_size=48, num_layers=3, num_heads=4, activation="gelu"),
    "grouped and gated": BackboneConfig(hidden_size=48, num_layers=2, num_heads=6, num_kv_heads=2, head_size=10, activation="geglu"),
    "factorised": BackboneConfig(hidden_size=48, embedding_size=16, num_layers=2, position="learned", mlm_transform="dense"),
    "t5": BackboneConfig(hidden_size=48, num_layers=2, num_decoder_layers=3, position="t5", tie="untied", activation="relu"),
    "alibi": BackboneConfig(hidden_size=48, num_layers=2, position="alibi", tie="untied", embedding_size=32),
}


def _counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_one_stack(kind, config) -> None:
    """Encoder and decoder: projections, attention in full, feed-forward."""
    with torch.device("meta"):
        backbone, ids = kind(replace(config, num_decoder_layers=None), VOCAB_SIZE, pad_id=0), torch.zeros(3, 7, dtype=torch.long)
    assert backbone.flops(3, 7) == _counted(lambda: backbone(ids))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_two_stacks(config) -> None:
    """Encoder and decoder together, of unequal lengths and depths."""
    with torch.device("meta"):
        backbone = EncoderDecoder(config, VOCAB_SIZE, pad_id=0)
        source, target = torch.zeros(3, 11, dtype=torch.long), torch.zeros(3, 5, dtype=torch.long)
    assert backbone.flops(3, 11, 5) == _counted(lambda: backbone(source, target))


def test_masks_do_not_count() -> None:
    """Packed documents are computed in full, and counted so."""
    with torch.device("meta"):
        backbone = Decoder(CONFIGS["grouped and gated"], VOCAB_SIZE, pad_id=0)
        ids = torch.zeros(3, 7, dtype=torch.long)
    assert backbone.flops(3, 7) == _counted(lambda: backbone(ids, document_ids=ids, attention_mask=ids.bool()))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", [LMHead, MLMHead])
def test_heads(kind, config) -> None:
    """Heads count the rows they are given."""
    with torch.device("meta"):
        embedding = torch.nn.Embedding(VOCAB_SIZE, config.vector_size)
        head, rows = kind(config, VOCAB_SIZE, embedding), torch.zeros(9, config.hidden_size)
    assert head.flops(9) == _counted(lambda: head(rows))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_training_is_three_times_forward(config) -> None:
    """What an objective relies on when it multiplies by three: each matrix product has two in its backward pass."""
    with torch.device("meta"):
        backbone, ids = Encoder(replace(config, num_decoder_layers=None), VOCAB_SIZE, pad_id=0), torch.zeros(2, 6, dtype=torch.long)
        head = MLMHead(config, VOCAB_SIZE, backbone.embedding)
    forward = backbone.flops(2, 6) + head.flops(12)
    assert _counted(lambda: head(backbone(ids)).sum().backward()) == 3 * forward
