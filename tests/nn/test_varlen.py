"""The bookkeeping around the variable-length kernel, with a plain implementation in the kernel's place."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from lmlab.backbones.base import BackboneConfig
from lmlab.backbones.decoder import Decoder
from lmlab.backbones.encoder import Encoder
from lmlab.nn import varlen

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2], [2, 2, 5, 5, 5, 5], [7, 7, 7, 7, 7, 7]])


def _plain_kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa) -> Tensor:
    """Attends slice by slice; asserts what a kernel would take for granted."""
    assert cu_seq_q.dtype == torch.int32 and cu_seq_q[0] == 0 and cu_seq_q[-1] == query.shape[0]
    assert max_q >= cu_seq_q.diff().max() and max_k >= cu_seq_k.diff().max()
    out = torch.empty_like(query)
    for start, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        q, k, v = (x[start:end].transpose(0, 1)[None] for x in (query, key, value))
        causal = window_size == (-1, 0)
        out[start:end] = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=enable_gqa)[0].transpose(0, 1)
    return out


def test_the_plain_kernel_is_called_as_the_real_one() -> None:
    """Every argument it is given exists in torch's signature."""
    real = inspect.signature(varlen_attn).parameters
    for name, parameter in inspect.signature(_plain_kernel).parameters.items():
        assert name in real and real[name].kind == parameter.kind


def test_segments() -> None:
    """A row's end ends its last document, even if the next row goes on with the same number."""
    bounds, longest = varlen.segments(DOCUMENTS)
    assert bounds.tolist() == [0, 3, 5, 6, 8, 12, 18] and bounds.dtype == torch.int32
    assert longest == 6


@pytest.mark.parametrize("kind", [Encoder, Decoder])
@torch.no_grad()
def test_equals_the_mask(kind, monkeypatch) -> None:
    """Packed documents attended by segments give what the block-diagonal mask gives."""
    backbone = kind(BackboneConfig(hidden_size=16, num_layers=2, num_kv_heads=2, init_std=0.3), 19, pad_id=0)
    ids = torch.randint(1, 19, DOCUMENTS.shape)
    masked = backbone(ids, document_ids=DOCUMENTS)
    used = []
    monkeypatch.setattr(varlen, "applicable", lambda *_: True)
    monkeypatch.setattr(varlen, "kernel", lambda *args, **kwargs: used.append(1) or _plain_kernel(*args, **kwargs))
    torch.testing.assert_close(backbone(ids, document_ids=DOCUMENTS), masked)
    assert len(used) == 2


def test_not_on_cpu() -> None:
    """Without a GPU the kernel is never chosen."""
    assert not varlen.applicable(torch.zeros(1, dtype=torch.bfloat16), torch.bfloat16, 0.0)
