"""Both kinds of stack trace into one graph, with and without masks."""

from __future__ import annotations

import pytest
import torch

from lmlab.backbones.base import BackboneConfig
from lmlab.backbones.decoder import Decoder
from lmlab.backbones.encoder import Encoder
from lmlab.backbones.encoder_decoder import EncoderDecoder

IDS = torch.randint(1, 19, (2, 6), generator=torch.Generator().manual_seed(0))
KEYS = {
    "nothing": {},
    "padding": {"attention_mask": torch.arange(6) < torch.tensor([[6], [4]])},
    "documents": {"document_ids": torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 2]])},
}


@pytest.mark.parametrize(
    ("kind", "position", "keys"),
    [
        (Encoder, "rope", "nothing"),
        pytest.param(Encoder, "learned", "padding", marks=pytest.mark.slow),
        (Decoder, "rope", "documents"),
        pytest.param(Decoder, "learned", "documents", marks=pytest.mark.slow),
        pytest.param(Decoder, "t5", "nothing", marks=pytest.mark.slow),
    ],
)
def test_full_graph(kind, position, keys) -> None:
    """No graph break, and the same states and gradients as without."""
    torch._dynamo.reset()
    backbone = kind(BackboneConfig(hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, position=position), 19, pad_id=0)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    states = compiled(IDS, **KEYS[keys])
    expected = backbone(IDS, **KEYS[keys])
    torch.testing.assert_close(states, expected)
    names, parameters = zip(*backbone.named_parameters(), strict=True)
    seed = torch.randn(states.shape)
    for name, ours, plain in zip(
        names, torch.autograd.grad(states, parameters, seed), torch.autograd.grad(expected, parameters, seed), strict=True
    ):
        torch.testing.assert_close(ours, plain, msg=lambda m, n=name: f"{n}: {m}")


def test_encoder_decoder_with_checkpointing() -> None:
    """Two stacks, recomputation and bfloat16 autocast in one graph."""
    torch._dynamo.reset()
    backbone = EncoderDecoder(BackboneConfig(hidden_size=16, num_layers=1, num_heads=2, checkpointing="blocks"), 19, pad_id=0)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        states, expected = compiled(IDS, IDS[:, :4]), backbone(IDS, IDS[:, :4])
    torch.testing.assert_close(states, expected)
    states.float().sum().backward()
