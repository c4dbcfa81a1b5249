"""Attention against loops over single vectors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmlab.errors import ConfigError
from lmlab.nn.attention import AttentionConfig, CrossAttention, SelfAttention
from lmlab.nn.init import InitConfig
from lmlab.nn.mask import Visibility, scores, unpadded

B, T, D, H, G, K = 2, 5, 8, 4, 2, 3
INIT = InitConfig(std=0.5)


def _config(**changes) -> AttentionConfig:
    plain = {"hidden_size": D, "num_heads": H, "num_kv_heads": G, "head_size": K, "qkv_bias": True, "out_bias": True}
    return AttentionConfig(**{**plain, "scale": None, "dropout": 0.0, **changes})


def _redraw(module: torch.nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5)


def _by_loops(module, x: Tensor, memory: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """One query, one head, one key at a time; `allowed` is (B, T, S)."""
    out = torch.zeros(*x.shape[:2], H * K)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            for h in range(H):
                rows = slice(h * K, (h + 1) * K)
                shared = slice(h // (H // G) * K, (h // (H // G) + 1) * K)
                query = module.q.weight[rows] @ x[b, t] + module.q.bias[rows]
                keys = [s for s in range(memory.shape[1]) if allowed[b, t, s]]
                if not keys:
                    continue
                raw = [scale * float(query @ (module.k.weight[shared] @ memory[b, s] + module.k.bias[shared])) for s in keys]
                weights = [math.exp(r - max(raw)) for r in raw]
                for s, weight in zip(keys, weights, strict=True):
                    out[b, t, rows] += weight / sum(weights) * (module.v.weight[shared] @ memory[b, s] + module.v.bias[shared])
    return out @ module.o.weight.T + module.o.bias


@pytest.mark.parametrize("scale", [None, 1.0])
@torch.no_grad()
def test_self_attention(scale) -> None:
    """Grouped heads, causal without a mask, and a mask that leaves one query nothing."""
    module = SelfAttention(_config(scale=scale), INIT)
    _redraw(module)
    x, factor = torch.randn(B, T, D), K**-0.5 if scale is None else scale
    causal = torch.ones(B, T, T).tril()
    torch.testing.assert_close(module(x, Visibility(causal=True)), _by_loops(module, x, x, causal, factor))
    allowed = torch.rand(B, T, T) < 0.5
    allowed[1, 2] = False
    masked = module(x, Visibility(scores=scores([unpadded(allowed)], None, torch.float32)))
    torch.testing.assert_close(masked, _by_loops(module, x, x, allowed, factor))
    torch.testing.assert_close(masked[1, 2], module.o.bias)


@torch.no_grad()
def test_cross_attention() -> None:
    """Queries of one row, keys of another length."""
    module = CrossAttention(_config(), INIT)
    _redraw(module)
    x, memory = torch.randn(B, T, D), torch.randn(B, 7, D)
    everything = torch.ones(B, T, 7)
    torch.testing.assert_close(module(x, memory, Visibility()), _by_loops(module, x, memory, everything, K**-0.5))


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_without_keys_has_finite_gradients(backend, dtype) -> None:
    """Rows of padding only must not poison the weights, whatever kernel runs."""
    module = SelfAttention(_config(), INIT).to(dtype)
    x = torch.randn(B, T, D, dtype=dtype, requires_grad=True)
    allowed = torch.ones(B, T, dtype=torch.bool)
    allowed[0] = False
    with sdpa_kernel(backend):
        out = module(x, Visibility(scores=scores([unpadded(allowed)], None, dtype)))
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert x.grad is not None and x.grad.isfinite().all() and out.isfinite().all()


def test_projections_are_separate_linears() -> None:
    """Adapters look for them by name and type, and biases are switched apart."""
    module = SelfAttention(_config(qkv_bias=False), INIT)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes == {"q.weight": (12, 8), "k.weight": (6, 8), "v.weight": (6, 8), "o.weight": (8, 12), "o.bias": (8,)}
    assert all(type(child) is torch.nn.Linear for child in module.children())
    called = []
    for child in module.children():
        child.register_forward_hook(lambda *_: called.append(1))
    module(torch.randn(1, 2, D), Visibility())
    assert len(called) == 4


def test_groups_must_divide() -> None:
    """Three query heads cannot share two key heads."""
    with pytest.raises(ConfigError, match="num_kv_heads"):
        _config(num_heads=3, num_kv_heads=2)
