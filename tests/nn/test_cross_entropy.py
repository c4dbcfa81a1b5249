"""The fused loss against torch's, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lmlab.data.batch import IGNORE_INDEX
from lmlab.nn import cross_entropy
from lmlab.nn.cross_entropy import linear_cross_entropy

N, D, V = 23, 6, 11
HALF_ERROR = 2**-7  # two roundings to eight bits of mantissa


@pytest.fixture(params=[False, True], ids=["one chunk", "many chunks"])
def chunked(request, monkeypatch) -> None:
    if request.param:
        monkeypatch.setattr(cross_entropy, "SCORES_AT_ONCE", 5 * V)
        monkeypatch.setattr(cross_entropy, "ROWS_AT_LEAST", 1)
        monkeypatch.setattr(cross_entropy, "SOFTMAX_AT_ONCE", 2 * V)


def _inputs(bias: bool, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(N, D), (V, D), *([(V,)] if bias else [])]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def _labels() -> torch.Tensor:
    labels = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(1))
    labels[::4] = IGNORE_INDEX
    return labels


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.usefixtures("chunked")
def test_equals_projection_and_loss(bias: bool) -> None:
    """Rows without a label count for nothing; the gradient scales with what comes from above."""
    inputs, labels = _inputs(bias, torch.float32), _labels()
    loss = linear_cross_entropy(inputs[0], inputs[1], inputs[2] if bias else None, labels)
    expected = F.cross_entropy(F.linear(*inputs), labels, reduction="sum")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * expected, inputs))


def test_frozen_matrix() -> None:
    """Only what needs a gradient gets one; without any, none is made."""
    vectors, weight = _inputs(False, torch.float32)
    loss = linear_cross_entropy(vectors, weight.detach(), None, _labels())
    expected = F.cross_entropy(F.linear(vectors, weight.detach()), _labels(), reduction="sum")
    torch.testing.assert_close(torch.autograd.grad(loss, vectors), torch.autograd.grad(expected, vectors))
    assert not linear_cross_entropy(vectors.detach(), weight.detach(), None, _labels()).requires_grad


@pytest.mark.usefixtures("chunked")
def test_autocast() -> None:
    """Products in bfloat16, loss and gradients of the weights in float32."""
    inputs, labels = _inputs(True, torch.float32), _labels()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(*inputs, labels)
    expected = F.cross_entropy(F.linear(*inputs), labels, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=HALF_ERROR, atol=0.0)
    for mine, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 2 * HALF_ERROR * theirs.norm()
