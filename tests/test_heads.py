"""Heads against their formulas, and what tying means."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lmlab.backbones.base import BackboneConfig
from lmlab.backbones.encoder import Encoder
from lmlab.errors import ConfigError
from lmlab.heads import LMHead, MLMHead

D, V, N = 12, 17, 5


@pytest.fixture
def rows() -> torch.Tensor:
    """(N, D) hidden states."""
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0))


def _embedding(config: BackboneConfig) -> nn.Embedding:
    return nn.Embedding(V, config.vector_size)


def test_tied(rows) -> None:
    """The embedding's matrix, scaled; its gradient arrives at the embedding, which the head does not own."""
    config = BackboneConfig(hidden_size=D, num_heads=2, logit_scale=0.5, head_bias=True)
    embedding = _embedding(config)
    head = LMHead(config, V, embedding)
    torch.nn.init.normal_(head.output_bias)
    logits = head(rows)
    torch.testing.assert_close(logits, 0.5 * rows @ embedding.weight.T + head.output_bias)
    assert dict(head.named_parameters()).keys() == {"output_bias"}
    logits.sum().backward()
    torch.testing.assert_close(embedding.weight.grad, 0.5 * rows.sum(0).expand(V, -1))


def test_untied(rows) -> None:
    """A matrix of its own."""
    config = BackboneConfig(hidden_size=D, num_heads=2, tie="untied")
    head = LMHead(config, V, _embedding(config))
    torch.testing.assert_close(head(rows), rows @ head.decoder.weight.T)
    assert head.weight is head.decoder.weight and head.bias is None


def test_narrow_embedding(rows) -> None:
    """A tied embedding narrower than D is reached through a projection."""
    config = BackboneConfig(hidden_size=D, num_heads=2, embedding_size=4)
    embedding = _embedding(config)
    for head in (LMHead(config, V, embedding), MLMHead(config, V, embedding)):
        torch.testing.assert_close(head(rows), rows @ head.dense.weight.T @ embedding.weight.T)


def test_transform(rows) -> None:
    """BERT's: dense, activation, norm, vocabulary and its bias."""
    config = BackboneConfig(
        hidden_size=D, num_heads=2, mlm_transform="dense", activation="relu", norm="layernorm", norm_bias=True, head_bias=True, norm_eps=0.1
    )
    embedding = _embedding(config)
    head = MLMHead(config, V, embedding)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    inner = (rows @ head.dense.weight.T + head.dense.bias).clamp(min=0)
    centred = inner - inner.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt() * head.norm.weight + head.norm.bias
    torch.testing.assert_close(head(rows), normed @ embedding.weight.T + head.output_bias, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.project(rows), normed, rtol=1e-4, atol=1e-4)


def test_a_copy_of_the_whole_stays_tied(rows) -> None:
    """Copying a model keeps head and embedding one matrix; a state dict holds it once."""
    config = BackboneConfig(hidden_size=D, num_heads=2, num_layers=1)
    backbone = Encoder(config, V, pad_id=0)
    whole = nn.ModuleDict({"backbone": backbone, "head": MLMHead(config, V, backbone.embedding)})
    other = copy.deepcopy(whole)
    assert other["head"].weight is other["backbone"].embedding.weight
    assert other["head"].weight is not whole["head"].weight
    assert not [key for key in whole.state_dict() if key.startswith("head.")]


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_autocast(rows, norm) -> None:
    """The transform runs under bfloat16 autocast, and stays near float32."""
    config = BackboneConfig(hidden_size=D, num_heads=2, mlm_transform="dense", norm=norm)
    head = MLMHead(config, V, _embedding(config))
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(rows)
    expected = head(rows)
    assert logits.dtype == torch.bfloat16
    assert (logits - expected).norm() < 0.03 * expected.norm()  # eight bits of mantissa


@pytest.mark.parametrize("kind", [LMHead, MLMHead])
@pytest.mark.parametrize("tie", ["tied", "untied"])
def test_drawn_after_meta(kind, tie) -> None:
    """No parameter is missed."""
    config = BackboneConfig(
        hidden_size=D, num_heads=2, tie=tie, head_bias=True, mlm_transform="dense", embedding_size=8, norm="layernorm", norm_bias=True
    )
    with torch.device("meta"):
        head = kind(config, V, _embedding(config))
    head.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(torch.nan)
    head.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in head.parameters())


def test_tied_to_nothing() -> None:
    """A tied head must be given what it is tied to."""
    with pytest.raises(ConfigError, match="embedding"):
        LMHead(BackboneConfig(), V, None)
