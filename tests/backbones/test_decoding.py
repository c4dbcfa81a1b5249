"""Decoding with a cache gives what a full forward pass gives."""

from __future__ import annotations

import pytest
import torch

from lmlab.backbones.base import BackboneConfig
from lmlab.backbones.decoder import Decoder
from lmlab.backbones.encoder_decoder import EncoderDecoder
from lmlab.errors import ConfigError
from lmlab.nn.cache import KVCache

VOCAB_SIZE, LENGTH = 31, 10
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # float32, another order of summation, states of about 1
STEPS = [(0, 4), (4, 5), (5, 8), (8, 9), (9, 10)]  # a prompt, single tokens, and a chunk in the middle
SIZES = {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "init_std": 0.3}
KINDS = {
    "modern": {"num_kv_heads": 2, "head_size": 6},
    "gpt2": {"position": "learned", "norm": "layernorm", "activation": "gelu_tanh", "qkv_bias": True, "max_length": LENGTH},
    "alibi": {"position": "alibi"},
    "t5": {"position": "t5", "relative_buckets": 8, "relative_max_distance": 9, "attention_scale": 1.0},
    "sinusoidal": {"position": "sinusoidal", "norm_position": "post"},
}


@pytest.fixture(params=KINDS)
def config(request) -> BackboneConfig:
    """Each kind of position."""
    return BackboneConfig(**SIZES, **KINDS[request.param])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("padding", ["none", "left", "left, with positions"])
@torch.no_grad()
def test_decoder(config, padding) -> None:
    """Prompt, single tokens and chunks, rows padded on the left or not."""
    backbone = Decoder(config, VOCAB_SIZE, pad_id=0).eval()
    ids = torch.randint(1, VOCAB_SIZE, (3, LENGTH))
    mask = None if padding == "none" else torch.arange(LENGTH) >= torch.tensor([[0], [2], [3]])
    positions = (mask.long().cumsum(1) - 1).clamp(min=0) if mask is not None and "positions" in padding else None
    full = backbone(ids, attention_mask=mask, position_ids=positions)
    cache, pieces = KVCache(), []
    for start, end in STEPS:
        first = slice(start, end) if start == 0 else None  # the mask and positions of the prompt; later ones follow from them
        pieces.append(
            backbone(
                ids[:, start:end],
                attention_mask=mask[:, first] if mask is not None and first else None,
                position_ids=positions[:, first] if positions is not None and first else None,
                cache=cache,
            )
        )
    real = slice(None) if mask is None else mask
    torch.testing.assert_close(torch.cat(pieces, dim=1)[real], full[real], **TOLERANCE)
    assert cache.length == LENGTH


@torch.no_grad()
def test_left_padding_changes_nothing(config) -> None:
    """A row padded on the left, its positions given, is the row alone."""
    backbone = Decoder(config, VOCAB_SIZE, pad_id=0).eval()
    ids = torch.randint(1, VOCAB_SIZE, (1, 6))
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), ids), dim=1)
    mask = torch.arange(9)[None] >= 3
    states = backbone(padded, attention_mask=mask, position_ids=(mask.long().cumsum(1) - 1).clamp(min=0))
    torch.testing.assert_close(states[:, 3:], backbone(ids), **TOLERANCE)


@torch.no_grad()
def test_encoder_decoder(config) -> None:
    """Cross-attention reads the source once; later calls need neither it nor its mask."""
    backbone = EncoderDecoder(config, VOCAB_SIZE, pad_id=0).eval()
    source, ids = torch.randint(1, VOCAB_SIZE, (2, 7)), torch.randint(1, VOCAB_SIZE, (2, LENGTH))
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    full = backbone(source, ids, attention_mask=mask)
    calls = []
    hooks = [block.cross_attention.k.register_forward_hook(lambda *_: calls.append(1)) for block in backbone.decoder.blocks]
    cache, pieces = KVCache(), []
    for start, end in STEPS:
        begun = start > 0
        pieces.append(backbone(None if begun else source, ids[:, start:end], attention_mask=None if begun else mask, cache=cache))
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(torch.cat(pieces, dim=1), full, **TOLERANCE)
    assert len(calls) == config.num_layers
    torch.testing.assert_close(backbone(None, ids, attention_mask=mask, encoder_states=backbone.encode(source, attention_mask=mask)), full)


@torch.no_grad()
def test_select_rows(config) -> None:
    """Beams may be swapped, repeated and dropped in the middle."""
    backbone = EncoderDecoder(config, VOCAB_SIZE, pad_id=0).eval()
    source, ids = torch.randint(1, VOCAB_SIZE, (2, 7)), torch.randint(1, VOCAB_SIZE, (2, 6))
    mask, own = torch.arange(7) < torch.tensor([[7], [4]]), torch.arange(6) >= torch.tensor([[1], [0]])
    positions, rows = (own.long().cumsum(1) - 1).clamp(min=0), torch.tensor([1, 0, 1])
    cache = KVCache()
    keys = {"decoder_attention_mask": own[:, :3], "decoder_position_ids": positions[:, :3]}
    backbone(source, ids[:, :3], attention_mask=mask, cache=cache, **keys)
    cache.select(rows)
    after = backbone(None, ids[rows, 3:], cache=cache)
    keys = {"decoder_attention_mask": own[rows], "decoder_position_ids": positions[rows]}
    full = backbone(source[rows], ids[rows], attention_mask=mask[rows], **keys)
    torch.testing.assert_close(after, full[:, 3:], **TOLERANCE)


def test_recomputation_does_not_lose_the_cache() -> None:
    """In training mode a cache is refused or used, never dropped: the second half must not be read as if nothing came before it."""
    backbone = Decoder(BackboneConfig(**SIZES, checkpointing="blocks"), VOCAB_SIZE, pad_id=0).train()
    ids = torch.randint(1, VOCAB_SIZE, (2, LENGTH))
    with pytest.raises(ConfigError, match="differentiated"):
        backbone(ids[:, :4], cache=KVCache())
    with torch.no_grad():
        cache = KVCache()
        halves = [backbone(ids[:, :4], cache=cache), backbone(ids[:, 4:], cache=cache)]
        torch.testing.assert_close(torch.cat(halves, dim=1), backbone(ids), **TOLERANCE)


def test_refusals() -> None:
    """No gradients, packed documents or custom masks with a cache."""
    backbone, ids = Decoder(BackboneConfig(**SIZES), VOCAB_SIZE, pad_id=0), torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(ConfigError, match="differentiated"):
        backbone(ids, cache=KVCache())
    with pytest.raises(ConfigError, match="document_ids"):
        backbone(ids, document_ids=ids, cache=KVCache())
    with pytest.raises(ConfigError, match="attention_mask"):
        backbone(ids, attention_mask=torch.ones(1, 4, 4, dtype=torch.bool), cache=KVCache())
